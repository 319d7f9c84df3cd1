package config

import (
	"fmt"
	"io"
	"log/slog"
)

// NewLog is a daemon's log as its config wants it.
func NewLog(w io.Writer, level, format string) (*slog.Logger, error) {
	l, err := ParseLogLevel(level)
	if err != nil {
		return nil, fmt.Errorf("logLevel: %w", err)
	}
	if err := checkLogFormat(format); err != nil {
		return nil, err
	}
	o := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

func checkLogFormat(format string) error {
	switch format {
	case "", "text", "json":
		return nil
	}
	return fmt.Errorf("logFormat: %q is unknown: use text or json", format)
}
