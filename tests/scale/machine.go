package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// describeMachine is what figures depend on.
func describeMachine() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's version: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", fmt.Errorf("ask for the machine's memory: %w", err)
	}
	memory := float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	return fmt.Sprintf("%d cores, %.0f GiB, kernel %s, %s", runtime.NumCPU(), memory, bytes.TrimRight(name.Release[:], "\x00"), runtime.Version()), nil
}

// resident is a process's resident memory in bytes.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no resident memory", pid)
}

// tick is the unit of CPU times in /proc, the same on every Linux (USER_HZ).
const tick = 10 * time.Millisecond

// cpuTime is what a process has used since its start, user and system.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	// The name in parentheses may hold anything; user and system time are the
	// 12th and 13th fields behind it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// loopback is what has gone over the loopback interface of this network
// namespace, in bytes of IP packets, both ways together: with hub and edges on one
// machine every packet is sent and received there once.
func loopback() (uint64, error) {
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, fmt.Errorf("read the loopback's counters: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "lo:"); ok {
			return strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("there is no loopback interface")
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// quietLog formats every record, as a daemon's log costs it, and shows only the
// first few errors.
func quietLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(new(fewErrors), nil))
}

type fewErrors struct{ shown atomic.Int32 }

const maxShown = 5

// Write takes one record.
func (f *fewErrors) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("level=ERROR")) && f.shown.Add(1) <= maxShown {
		return os.Stderr.Write(b)
	}
	return len(b), nil
}
