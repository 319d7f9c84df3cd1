package pod

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells a node's time. Durations are counted by Mono alone.
type Clock interface {
	// Mono is the time since the machine booted, also while it slept; it only goes forward.
	Mono() time.Duration
	// Wall is what timestamps say. It may be wrong on a node without a battery-backed clock.
	Wall() time.Time
	// Boot names this boot of the machine: readings of Mono compare only within one.
	Boot() string
}

// machineClock is the machine's own clock; floor keeps Wall from going back before what is known.
type machineClock struct {
	boot  string
	floor func() time.Time
}

// NewClock reads the machine's clock. floor returns the latest moment known to have passed (the zero
// time when none is); nil means that nothing is known.
func NewClock(floor func() time.Time) (Clock, error) {
	const path = "/proc/sys/kernel/random/boot_id"
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("name of this boot: %w", err)
	}
	if floor == nil {
		floor = func() time.Time { return time.Time{} }
	}
	return &machineClock{boot: strings.TrimSpace(string(b)), floor: floor}, nil
}

func (c *machineClock) Boot() string { return c.boot }

func (c *machineClock) Mono() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME cannot be read: " + err.Error()) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

func (c *machineClock) Wall() time.Time {
	now := time.Now()
	if f := c.floor(); now.Before(f) {
		return f
	}
	return now
}
