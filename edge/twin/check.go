package twin

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// Limits of what a device may say.
const (
	// MaxValue bounds one value, in bytes.
	MaxValue = 8 << 10
	// MaxMetadata bounds the metadata of one value: keys and values together.
	MaxMetadata = 1 << 10
	// MaxProperties bounds the properties of one device.
	MaxProperties = 256
)

// RejectedError says why a value was refused.
type RejectedError struct {
	Property, Value, Reason string
	// Desired: it was a desired value; else a reported one.
	Desired bool
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("property %s: the value %s is refused: %s", e.Property, quote(e.Value), e.Reason)
}

// quote shows the beginning of a value, whatever is in it.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.Quote(s[:most]) + "..."
	}
	return strconv.Quote(s)
}

// Check says why a value cannot be one of the property; nil when it can.
func (p *Property) Check(v Value) error {
	if reason := p.wrong(v); reason != "" {
		return &RejectedError{Property: p.Name, Value: v.Text, Reason: reason}
	}
	return nil
}

func (p *Property) wrong(v Value) string {
	size := 0
	for k, m := range v.Metadata {
		size += len(k) + len(m)
		if !utf8.ValidString(k) || !utf8.ValidString(m) {
			return "its metadata is not UTF-8"
		}
	}
	switch {
	case len(v.Text) > MaxValue:
		return fmt.Sprintf("it has %d bytes, and %d is the limit", len(v.Text), MaxValue)
	case size > MaxMetadata:
		return fmt.Sprintf("its metadata has %d bytes, and %d is the limit", size, MaxMetadata)
	case !utf8.ValidString(v.Text):
		return "it is not UTF-8"
	}
	switch p.Type {
	case v1beta1.TypeInt:
		n, err := strconv.ParseInt(v.Text, 10, 64)
		if err != nil {
			return "it is not a whole number (INT)"
		}
		return p.outsideInt(n)
	case v1beta1.TypeFloat, v1beta1.TypeDouble:
		bits := 64
		if p.Type == v1beta1.TypeFloat {
			bits = 32
		}
		f, err := strconv.ParseFloat(v.Text, bits)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) || strings.ContainsAny(v.Text, "xX_pP") {
			return fmt.Sprintf("it is not a finite number (%s)", p.Type)
		}
		return p.outside(f)
	case v1beta1.TypeBoolean:
		if v.Text != "true" && v.Text != "false" {
			return "it is neither true nor false (BOOLEAN)"
		}
	case v1beta1.TypeBytes:
		if _, err := base64.StdEncoding.DecodeString(v.Text); err != nil {
			return "it is not base64 (BYTES)"
		}
	}
	return ""
}

func (p *Property) outsideInt(n int64) string {
	if low, err := strconv.ParseInt(p.Minimum, 10, 64); err == nil && n < low {
		return "it is below the minimum " + p.Minimum
	}
	if high, err := strconv.ParseInt(p.Maximum, 10, 64); err == nil && n > high {
		return "it is above the maximum " + p.Maximum
	}
	return p.outside(float64(n)) // a bound may have a fraction
}

func (p *Property) outside(f float64) string {
	if low, err := strconv.ParseFloat(p.Minimum, 64); err == nil && f < low {
		return "it is below the minimum " + p.Minimum
	}
	if high, err := strconv.ParseFloat(p.Maximum, 64); err == nil && f > high {
		return "it is above the maximum " + p.Maximum
	}
	return ""
}

// clip bounds a text that is only shown, and makes it UTF-8.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
