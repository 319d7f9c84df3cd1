package containerlog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"
)

// Stream is what a container writes to.
type Stream string

// The streams that can be asked for.
const (
	All    Stream = ""
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Query says what of a log is wanted, as PodLogOptions do. The zero value is nothing:
// Tail is to be -1 for all of it.
type Query struct {
	Tail       int64     // that many lines from the end; negative: all
	Since      time.Time // what was written before is left out; zero: nothing is
	Limit      int64     // bytes at most; 0: no limit
	Timestamps bool      // put when it was written before each line
	Stream     Stream
	Follow     bool // wait for more until Running says no, and all was read
	// Running tells whether the container may write more; for Follow.
	Running func(context.Context) bool
}

// errLimit ends a copy whose limit is reached.
var errLimit = errors.New("the limit of bytes is reached")

// Copy writes what q asks for of the log at path to w, and calls flush when there is
// nothing more for now. Without Follow it ends with what was there when it began. Lines
// in files that were rotated away count as those of the present one do, unlike with the
// kubelet, which knows the present one alone.
//
// An error of w or flush is returned as it is; ctx ends only a wait.
func Copy(ctx context.Context, w io.Writer, flush func() error, path string, q Query) error {
	c := &copier{q: q, path: path, out: bufio.NewWriterSize(w, bufferSize), flush: flush, fresh: true, left: math.MaxInt64}
	if q.Limit > 0 {
		c.left = q.Limit
	}
	defer c.close()
	switch err := c.run(ctx); {
	case err == nil || errors.Is(err, errLimit):
		return c.send()
	case c.out.Buffered() > 0: // what was read before it went wrong
		return errors.Join(err, c.send())
	default:
		return err
	}
}

// copier is one Copy.
type copier struct {
	q     Query
	path  string
	out   *bufio.Writer
	flush func() error
	left  int64 // bytes that may still be written
	fresh bool  // what is written next begins a line

	scan    *scanner
	present *os.File // the file that is read, or is to be read when the earlier ones were

	rotated time.Time // when the present file was seen to be rotated away; zero: it is not
	final   bool      // nobody writes to it any more: what is read next is its end
}

func (c *copier) close() {
	if c.present != nil {
		c.present.Close()
	}
}

func (c *copier) run(ctx context.Context) error {
	var rotated []string
	var err error
	if c.present, rotated, err = openPresent(c.path); err != nil {
		return err
	}
	c.scan = newScanner(nil)
	var watch *watch
	if c.q.Follow { // before the size is looked at: what comes after is told
		watch = newWatch(c.path)
		defer watch.close()
	}
	info, err := c.present.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	first, offset, err := c.start(rotated, size)
	if err != nil {
		return err
	}
	for ; first < len(rotated); first++ {
		if err := c.copyEarlier(ctx, rotated[first], offset); err != nil {
			return err
		}
		offset = 0
	}
	if c.q.Follow {
		if _, err := c.present.Seek(offset, io.SeekStart); err != nil {
			return err
		}
		c.scan.reset(c.present, offset)
		return c.follow(ctx, watch)
	}
	c.scan.reset(io.NewSectionReader(c.present, offset, size-offset), offset)
	if err := c.drain(ctx); err != nil {
		return err
	}
	return c.put(c.scan.rest())
}

// start finds where to begin: in rotated[first], or behind them in the present file.
func (c *copier) start(rotated []string, size int64) (first int, offset int64, err error) {
	if !c.q.Since.IsZero() {
		// A file that was last written to before holds nothing that is wanted.
		for first < len(rotated) && writtenBefore(rotated[first], c.q.Since) {
			first++
		}
	}
	if c.q.Tail < 0 {
		return first, 0, nil
	}
	need := c.q.Tail
	if need == 0 {
		return len(rotated), size, nil
	}
	offset, found, err := lastLines(c.present, size, need, true)
	if err != nil {
		return 0, 0, fmt.Errorf("end of %s: %w", c.path, err)
	}
	need -= found
	// As long as the start of a file is reached the one before it counts too: when
	// enough lines were found, for what was begun there of the first of them.
	at := len(rotated)
	for at > first && offset == 0 {
		at--
		if offset, found, err = linesOf(rotated[at], need); err != nil {
			return 0, 0, fmt.Errorf("end of %s: %w", rotated[at], err)
		}
		need -= found
	}
	return at, offset, nil
}

func writtenBefore(name string, t time.Time) bool {
	info, err := os.Stat(name)
	if err != nil {
		info, err = os.Stat(name + ".gz")
	}
	return err == nil && info.ModTime().Before(t)
}

// linesOf is lastLines for a rotated file.
func linesOf(name string, n int64) (offset, found int64, err error) {
	e, err := openEarlier(name, 0)
	if e == nil || err != nil {
		return 0, 0, err
	}
	defer e.Close()
	if e.size >= 0 {
		return lastLines(e.file, e.size, n, false)
	}
	if found, err = countLines(e); err != nil || found <= n {
		return 0, found, err
	}
	again, err := openEarlier(name, 0)
	if again == nil || err != nil {
		return 0, 0, err
	}
	defer again.Close()
	offset, err = behindLines(again, found-n)
	return offset, n, err
}

// copyEarlier copies a rotated file.
func (c *copier) copyEarlier(ctx context.Context, name string, offset int64) error {
	e, err := openEarlier(name, offset)
	if e == nil || err != nil {
		return err
	}
	defer e.Close()
	c.scan.reset(e, offset)
	if err := c.drain(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return c.put(c.scan.rest())
}

// drain copies what there is.
func (c *copier) drain(ctx context.Context) error {
	for {
		p, err := c.scan.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = c.put(p)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// stampLayout is that of the kubelet: it always has nine digits behind the second.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00 "

// put writes a piece, if it is wanted.
func (c *copier) put(p *piece) error {
	if p == nil || c.q.Stream == Stdout && p.stderr || c.q.Stream == Stderr && !p.stderr {
		return nil
	}
	if c.q.Timestamps || !c.q.Since.IsZero() {
		t, ok := p.time()
		if !ok || t.Before(c.q.Since) {
			return nil
		}
		if c.q.Timestamps && c.fresh {
			if err := c.write(t.AppendFormat(nil, stampLayout)); err != nil {
				return err
			}
		}
	}
	c.fresh = p.endsLine()
	return c.write(p.content)
}

func (c *copier) write(b []byte) error {
	n, err := c.out.Write(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	if err == nil && c.left == 0 {
		err = errLimit
	}
	return err
}

func (c *copier) send() error {
	if err := c.out.Flush(); err != nil {
		return err
	}
	return c.flush()
}
