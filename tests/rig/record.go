package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// record says what one instance has put into the machine, so that a later process can take it out again
// when the owner died before it could. It is written before the first thing is made: a record may name
// things that do not exist, but nothing exists without a record.
type record struct {
	Owner      int    // pid of the process that made the instance
	OwnerStart uint64 // its start time in clock ticks since boot: pids are used again, pairs are not
	PidSpace   string // the pid namespace in which Owner means something

	Netns  string       `json:",omitempty"` // name below /var/run/netns
	Link   string       `json:",omitempty"` // interface in the network namespace of the owner
	Prefix netip.Prefix `json:",omitzero"`  // address range in use
	Place  *place       `json:",omitempty"` // a containerd
}

// claim is one instance's entry: a directory below baseDir that holds its record and its runtime files.
type claim struct {
	id  string
	dir string
}

// baseDir holds the claims of all processes of this machine. It is short because unix socket paths, which
// live below it, may not exceed 107 bytes.
func baseDir() string { return filepath.Join(os.TempDir(), "holdfast-rig") }

// newClaim sweeps what dead processes left, then writes the record that fill returns for the chosen id.
// fill runs under the machine-wide lock and sees the records of all living instances; it may claim a
// shared resource (an address range) by looking at them.
func newClaim(fill func(id string, others []record) (record, error)) (*claim, error) {
	base := baseDir()
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, fmt.Errorf("make rig directory: %w", err)
	}
	unlock, err := lockBase(base)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Remains that cannot be cleared keep their record and what they occupy, but stop nobody from starting;
	// who wants to know calls Sweep.
	others, _ := sweepLocked(base)

	for n := 0; ; n++ {
		id := strconv.FormatInt(int64(os.Getpid()), 36) + "-" + strconv.FormatInt(int64(n), 36)
		c := &claim{id: id, dir: filepath.Join(base, id)}
		if err := os.Mkdir(c.dir, 0o755); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("claim %s: %w", id, err)
		}
		rec, err := fill(id, others)
		if err == nil {
			err = c.write(rec)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("claim %s: %w", id, err), os.RemoveAll(c.dir))
		}
		return c, nil
	}
}

func (c *claim) write(rec record) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	rec.Owner, rec.OwnerStart, rec.PidSpace = os.Getpid(), start, space
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "record.json"), b, 0o644)
}

// release forgets the instance; everything its record names must be gone by then.
func (c *claim) release() error { return os.RemoveAll(c.dir) }

// Sweep removes what instances of dead processes left behind. Everything that starts an instance sweeps
// first, so this is only needed by one who wants a clean machine without starting anything.
func Sweep() error {
	base := baseDir()
	if _, err := os.Stat(base); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockBase(base)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = sweepLocked(base)
	return err
}

// sweepLocked clears the instances whose owner is dead and returns the records of those that remain, also
// with an error.
func sweepLocked(base string) ([]record, error) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, fmt.Errorf("read rig directory: %w", err)
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	var remain []record
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(base, e.Name())
		b, err := os.ReadFile(filepath.Join(dir, "record.json"))
		if errors.Is(err, fs.ErrNotExist) {
			// Records are written under the lock that we hold: its owner died between the two steps.
			errs = append(errs, os.RemoveAll(dir))
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var rec record
		if err := json.Unmarshal(b, &rec); err != nil {
			errs = append(errs, fmt.Errorf("record of instance %s is unreadable; remove %s by hand: %w", e.Name(), dir, err))
			continue
		}
		if rec.PidSpace != space || ownerLives(rec) {
			remain = append(remain, rec)
			continue
		}
		if err := rec.clear(); err != nil {
			remain = append(remain, rec)
			errs = append(errs, fmt.Errorf("clear instance %s of dead process %d: %w", e.Name(), rec.Owner, err))
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return remain, errors.Join(errs...)
}

// clear takes everything that the record names out of the machine.
func (r record) clear() error {
	var errs []error
	if r.Place != nil {
		errs = append(errs, r.Place.erase())
	}
	if r.Link != "" {
		errs = append(errs, deleteLink(r.Link))
	}
	if r.Netns != "" {
		errs = append(errs, deleteNetns(r.Netns))
	}
	return errors.Join(errs...)
}

func ownerLives(r record) bool {
	start, err := startTime(r.Owner)
	return err == nil && start == r.OwnerStart
}

// startTime reads field 22 of /proc/pid/stat.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	s := string(b)
	// The second field is the program's name in parentheses and may hold anything, spaces included.
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: short stat line %q", pid, s)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func lockBase(base string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open rig lock: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("take rig lock: %w", err)
	}
	return func() { f.Close() }, nil
}
