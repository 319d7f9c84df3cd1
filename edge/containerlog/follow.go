package containerlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"
)

const (
	// askAgain is how often is asked whether the container still runs, when nothing
	// hints at its end.
	askAgain = time.Second
	// askSoon is how long after the runtime has closed a file: it knows of the end of
	// the container a moment later.
	askSoon = 30 * time.Millisecond
	// gather is how long lines wait for others to go with, once one has just gone: a
	// chatty container is not to cost a packet for each line.
	gather = 20 * time.Millisecond
	// handover is how long a rotated file is still read when nobody tells that the runtime
	// has closed it: that opens the new one before it lets go of the old one, and where
	// the disk is slow the old one is written to for a while.
	handover = 5 * time.Second
)

// follow copies the present file and those that come after it, until the container has
// ended and all was read.
func (c *copier) follow(ctx context.Context, watch *watch) error {
	var asked, sent time.Time
	ended, wait := false, time.Duration(0)
	for {
		if !ended && time.Since(asked) >= wait {
			ended = !c.q.Running(ctx) // before the reading, so that what it wrote last is read
			asked, wait = time.Now(), askAgain
		}
		if err := c.drain(ctx); err != nil {
			return err
		}
		if c.out.Buffered() > 0 || sent.IsZero() {
			if err := c.send(); err != nil {
				return err
			}
			sent = time.Now()
		}
		moved, err := c.advance(ctx, ended, watch)
		switch {
		case err != nil:
			return err
		case moved, c.final:
			continue
		case ended && !c.stale():
			return c.put(c.scan.rest())
		}
		patience := wait - time.Since(asked)
		if c.stale() {
			patience = handover - time.Since(c.rotated)
			if err := sleep(ctx, gather); err != nil { // the new file is written to all the time
				return err
			}
		}
		closed, err := watch.wait(ctx, patience)
		if err != nil {
			return err
		}
		if closed {
			wait = askSoon
			asked = time.Now()
		}
		if pause := gather - time.Since(sent); pause > 0 {
			if err := sleep(ctx, pause); err != nil {
				return err
			}
		}
	}
}

// stale says that the present file was seen to be rotated away.
func (c *copier) stale() bool { return !c.rotated.IsZero() }

// advance goes on in the next file when the present one was rotated away and nobody
// writes to it any more. It is read once more when that is known.
func (c *copier) advance(ctx context.Context, ended bool, watch *watch) (moved bool, err error) {
	if isAt(c.present, c.path) {
		c.rotated, c.final = time.Time{}, false
		return false, c.cutShort()
	}
	next, rotated, err := openPresent(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		c.rotated, c.final = time.Time{}, false
		return false, nil // the runtime has yet to open it, or the pod is gone
	}
	if err != nil {
		return false, err
	}
	if !c.stale() {
		c.rotated = time.Now()
	}
	last := nameOf(c.present, rotated)
	if !c.final {
		// Who has removed the file, or rotated another one since, writes elsewhere.
		c.final = ended || last == "" || watch.closed >= filepath.Base(last) || rotated[len(rotated)-1] > last || time.Since(c.rotated) >= handover
		next.Close()
		return false, nil
	}
	c.rotated, c.final = time.Time{}, false
	if err := c.put(c.scan.rest()); err != nil {
		next.Close()
		return false, err
	}
	c.present.Close()
	c.present = next
	for _, name := range rotated {
		if name > last { // rotated meanwhile: who reads slowly misses none
			if err := c.copyEarlier(ctx, name, 0); err != nil {
				return false, err
			}
		}
	}
	c.scan.reset(next, 0)
	return true, nil
}

// cutShort begins anew in a file that somebody has emptied.
func (c *copier) cutShort() error {
	info, err := c.present.Stat()
	if err != nil {
		return err
	}
	at, err := c.present.Seek(0, io.SeekCurrent)
	if err != nil || info.Size() >= at {
		return err
	}
	if _, err := c.present.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	c.scan.reset(c.present, 0)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
