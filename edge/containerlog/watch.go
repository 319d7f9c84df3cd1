package containerlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pollEvery is how often a log is looked at where the kernel tells of no changes.
const pollEvery = 250 * time.Millisecond

// watch waits for changes in a log's directory. The kernel allows few watchers (128 by
// default): who gets none looks at the log now and then.
type watch struct {
	file   *os.File
	prefix string // of the names of rotated files
	closed string // the last rotated file, by name, that was closed by who had written to it
}

func newWatch(path string) *watch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return &watch{}
	}
	const events = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE | unix.IN_DELETE_SELF
	file := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), events); err != nil {
		file.Close()
		return &watch{}
	}
	return &watch{file: file, prefix: filepath.Base(path) + "."}
}

func (w *watch) close() {
	if w.file != nil {
		w.file.Close()
	}
}

// wait waits for a change, patience at most. closed: the runtime has closed a file in the
// directory.
func (w *watch) wait(ctx context.Context, patience time.Duration) (closed bool, err error) {
	if w.file == nil {
		return false, sleep(ctx, max(min(patience, pollEvery), time.Millisecond))
	}
	if err := w.file.SetReadDeadline(time.Now().Add(max(patience, 0))); err != nil {
		return false, fmt.Errorf("wait for a change of the log: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var buf [4 << 10]byte
	n, err := w.file.Read(buf[:])
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return false, fmt.Errorf("wait for a change of the log: %w", err)
	}
	for at := 0; at+unix.SizeofInotifyEvent <= n; {
		// struct inotify_event: wd, mask, cookie, len and a name of that length
		end := at + unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[at+12:]))
		if binary.NativeEndian.Uint32(buf[at+4:])&unix.IN_CLOSE_WRITE != 0 {
			closed = true
			w.note(strings.TrimRight(string(buf[at+unix.SizeofInotifyEvent:end]), "\x00"))
		}
		at = end
	}
	return closed, nil
}

// note takes down a file that was closed, if it is a rotated one.
func (w *watch) note(name string) {
	suffix, ok := strings.CutPrefix(name, w.prefix)
	if !ok {
		return
	}
	if _, err := time.Parse(RotatedLayout, suffix); err == nil {
		w.closed = max(w.closed, name)
	}
}
