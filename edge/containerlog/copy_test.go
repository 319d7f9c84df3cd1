package containerlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// begin is when the first line of the tests' logs was written; one follows each second.
var begin = time.Date(2024, 5, 6, 7, 0, 0, 0, time.UTC)

func entry(i int, stream, tag, text string) string {
	return fmt.Sprintf("%s %s %s %s\n", begin.Add(time.Duration(i)*time.Second).Format(time.RFC3339Nano), stream, tag, text)
}

// numbered are lines "line from" to "line to".
func numbered(from, to int) (log, text string) {
	var l, t strings.Builder
	for i := from; i <= to; i++ {
		l.WriteString(entry(i, "stdout", "F", fmt.Sprint("line ", i)))
		fmt.Fprintln(&t, "line", i)
	}
	return l.String(), t.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string, at int) {
	t.Helper()
	if strings.HasSuffix(path, ".gz") {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := z.Write([]byte(text))
		must(t, errors.Join(err, z.Close()))
		text = b.String()
	}
	must(t, os.WriteFile(path, []byte(text), 0o640))
	when := begin.Add(time.Duration(at) * time.Second)
	must(t, os.Chtimes(path, when, when))
}

// rotated makes a log of 400 lines in four files, two of them compressed.
func rotated(t *testing.T) (path, text string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "0.log")
	for i, suffix := range []string{".20240506-070140.gz", ".20240506-070320.gz", ".20240506-070500", ""} {
		log, lines := numbered(100*i+1, 100*i+100)
		write(t, path+suffix, log, 100*i+100)
		text += lines
	}
	write(t, path+".20240506-070320.gz.tmp", "half", 0)
	write(t, path+".other", "not ours", 0)
	return path, text
}

func read(t *testing.T, path string, q Query) string {
	t.Helper()
	var b bytes.Buffer
	must(t, Copy(t.Context(), &b, func() error { return nil }, path, q))
	return b.String()
}

func lastOf(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	lines = lines[:len(lines)-1]
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

func TestWhatIsAskedForComes(t *testing.T) {
	path, text := rotated(t)
	check := func(name string, q Query, want string) {
		t.Helper()
		if got := read(t, path, q); got != want {
			t.Errorf("%s: %d bytes, want %d: %.200q, want %.200q", name, len(got), len(want), got, want)
		}
	}
	check("all", Query{Tail: -1}, text)
	for _, n := range []int{0, 1, 7, 99, 100, 101, 200, 201, 250, 299, 300, 301, 350, 400, 401, 100_000} {
		check(fmt.Sprint("tail ", n), Query{Tail: int64(n)}, lastOf(text, n))
	}
	for _, n := range []int{1, 50, 100, 101, 200, 301, 399} {
		check(fmt.Sprint("since ", n), Query{Tail: -1, Since: begin.Add(time.Duration(400-n+1) * time.Second)}, lastOf(text, n))
	}
	check("since the future", Query{Tail: -1, Since: begin.Add(time.Hour)}, "")
	check("tail and since", Query{Tail: 150, Since: begin.Add(391 * time.Second)}, lastOf(text, 10))
	check("since and tail", Query{Tail: 10, Since: begin.Add(100 * time.Second)}, lastOf(text, 10))
	check("limit", Query{Tail: -1, Limit: 33}, text[:33])
	check("limit beyond the end", Query{Tail: 1, Limit: 1000}, "line 400\n")
	check("timestamps", Query{Tail: 1, Timestamps: true}, "2024-05-06T07:06:40.000000000Z line 400\n")
	check("limit with timestamps", Query{Tail: 1, Timestamps: true, Limit: 20}, "2024-05-06T07:06:40.")
}

func TestStreamsAndPartsOfLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log := entry(1, "stdout", "F", "one") + entry(2, "stderr", "F", "two") +
		entry(3, "stdout", "P", "thr") + entry(4, "stdout", "P", "e") + entry(5, "stdout", "F", "e") + entry(6, "stdout", "P", "fo")
	write(t, path, log, 6)
	for _, c := range []struct {
		name string
		q    Query
		want string
	}{
		{"all", Query{Tail: -1}, "one\ntwo\nthree\nfo"},
		{"stdout", Query{Tail: -1, Stream: Stdout}, "one\nthree\nfo"},
		{"stderr", Query{Tail: -1, Stream: Stderr}, "two\n"},
		{"the last line is not ended", Query{Tail: 1}, "fo"},
		{"a line in three parts is one", Query{Tail: 2}, "three\nfo"},
		{"one stamp for each line", Query{Tail: 3, Timestamps: true},
			"2024-05-06T07:00:02.000000000Z two\n2024-05-06T07:00:03.000000000Z three\n2024-05-06T07:00:06.000000000Z fo"},
	} {
		if got := read(t, path, c.q); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestALineThatGoesOnInTheNextFileIsOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path+".20240506-070001", entry(1, "stdout", "F", "one")+entry(2, "stdout", "P", "tw"), 2)
	write(t, path, entry(3, "stdout", "F", "o")+entry(4, "stdout", "F", "three"), 4)
	for n, want := range []string{"", "three\n", "two\nthree\n", "one\ntwo\nthree\n"} {
		if got := read(t, path, Query{Tail: int64(n)}); got != want {
			t.Errorf("tail %d: %q, want %q", n, got, want)
		}
	}
}

func TestTailReadsNoMoreThanItMust(t *testing.T) {
	log, text := numbered(1, 50_000)
	r := &counting{Reader: bytes.NewReader([]byte(log))}
	offset, found, err := lastLines(r, int64(len(log)), 10, true)
	must(t, err)
	if found != 10 || !strings.HasSuffix(log, log[offset:]) || strings.Count(log[offset:], "\n") != 10 {
		t.Errorf("%d lines found at %d", found, offset)
	}
	if r.bytes > 2*bufferSize {
		t.Errorf("%d bytes of %d were read for ten lines", r.bytes, len(log))
	}
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, log, 0)
	for _, n := range []int{1, 1000, 12_345, 50_000} {
		if got := read(t, path, Query{Tail: int64(n)}); got != lastOf(text, n) {
			t.Errorf("tail %d: %d bytes", n, len(got))
		}
	}
}

type counting struct {
	*bytes.Reader
	bytes int
}

func (c *counting) ReadAt(b []byte, at int64) (int, error) {
	c.bytes += len(b)
	return c.Reader.ReadAt(b, at)
}

func TestDamagedFileHidesNoOther(t *testing.T) {
	path, text := rotated(t)
	gz := path + ".20240506-070320.gz"
	b, err := os.ReadFile(gz)
	must(t, err)
	must(t, os.WriteFile(gz, b[:len(b)/2], 0o640))
	got := read(t, path, Query{Tail: -1})
	if !strings.HasPrefix(got, text[:1000]) || !strings.HasSuffix(got, lastOf(text, 200)) {
		t.Errorf("got %d bytes of %d", len(got), len(text))
	}
	must(t, os.WriteFile(gz, []byte("no gzip at all"), 0o640))
	if got, want := read(t, path, Query{Tail: -1}), lastOf(lastOf(text, 400), 400); len(got) != len(want)-len("line 101\n")*100 {
		t.Errorf("got %d bytes of %d", len(got), len(want))
	}
	if got := read(t, path, Query{Tail: 300}); strings.Count(got, "\n") != 300 {
		t.Errorf("tail reaches over it for %d lines", strings.Count(got, "\n"))
	}
}

func TestNoLogIsAnError(t *testing.T) {
	flushed := false
	err := Copy(t.Context(), new(bytes.Buffer), func() error { flushed = true; return nil }, filepath.Join(t.TempDir(), "0.log"), Query{Tail: -1})
	if !errors.Is(err, fs.ErrNotExist) || flushed {
		t.Errorf("got %v; flushed: %t", err, flushed)
	}
	if err := Copy(t.Context(), new(bytes.Buffer), nil, t.TempDir(), Query{Tail: -1}); err == nil {
		t.Error("a directory was read as a log")
	}
}

// follower reads a log as it grows.
type follower struct {
	t      *testing.T
	path   string
	runs   atomic.Bool
	cancel context.CancelFunc
	ended  chan error

	mu   sync.Mutex
	more chan struct{}
	text bytes.Buffer
}

func (f *follower) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() {
		select {
		case f.more <- struct{}{}:
		default:
		}
	}()
	return f.text.Write(b)
}

func (f *follower) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}

func follow(t *testing.T, path string, q Query) *follower {
	t.Helper()
	f := &follower{t: t, path: path, ended: make(chan error, 1), more: make(chan struct{}, 1)}
	f.runs.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	q.Follow, q.Running = true, func(context.Context) bool { return f.runs.Load() }
	begun := make(chan struct{})
	var once sync.Once
	go func() {
		f.ended <- Copy(ctx, f, func() error { once.Do(func() { close(begun) }); return nil }, path, q)
	}()
	<-begun
	t.Cleanup(cancel)
	return f
}

func (f *follower) await(want string) {
	f.t.Helper()
	deadline := time.After(time.Minute)
	for f.String() != want {
		select {
		case <-f.more:
		case <-deadline:
			f.t.Fatalf("got %.500q, want %.500q", f.String(), want)
		}
	}
}

// append writes to the present log, as the runtime does.
func (f *follower) append(text string) {
	f.t.Helper()
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	must(f.t, err)
	_, err = file.WriteString(text)
	must(f.t, errors.Join(err, file.Close()))
}

func (f *follower) end(want string) {
	f.t.Helper()
	f.runs.Store(false)
	select {
	case err := <-f.ended:
		must(f.t, err)
	case <-time.After(time.Minute):
		f.t.Fatal("it does not end with the container")
	}
	if got := f.String(); got != want {
		f.t.Errorf("at the end %.500q, want %.500q", got, want)
	}
}

func TestFollow(t *testing.T) {
	path, text := rotated(t)
	f := follow(t, path, Query{Tail: 150})
	want := lastOf(text, 150)
	f.await(want)
	f.append(entry(401, "stdout", "F", "line 401"))
	want += "line 401\n"
	f.await(want)
	half := entry(402, "stdout", "F", "line 402")
	f.append(half[:20])
	f.append(half[20:])
	want += "line 402\n"
	f.await(want)
	f.append(entry(403, "stdout", "F", "line 403"))
	f.end(want + "line 403\n") // what was written last is read though the end is known
}

func TestFollowAcrossRotation(t *testing.T) {
	path, _ := rotated(t)
	f := follow(t, path, Query{Tail: 0})
	f.append(entry(401, "stdout", "F", "line 401"))
	f.await("line 401\n")
	old := path + ".20240506-070700"
	must(t, os.Rename(path, old))
	file, err := os.OpenFile(old, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	f.append(entry(403, "stdout", "F", "line 403")) // the new file is there before the old one is let go of
	_, err = file.WriteString(entry(402, "stdout", "F", "line 402"))
	must(t, errors.Join(err, file.Close()))
	f.await("line 401\nline 402\nline 403\n")
	f.end("line 401\nline 402\nline 403\n")
}

// TestFollowWaitsForWhoWritesToTheOldFile: where the disk is slow, for a while.
func TestFollowWaitsForWhoWritesToTheOldFile(t *testing.T) {
	path, _ := rotated(t)
	f := follow(t, path, Query{Tail: 0})
	old := path + ".20240506-070700"
	must(t, os.Rename(path, old))
	file, err := os.OpenFile(old, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	f.append(entry(403, "stdout", "F", "line 403"))
	time.Sleep(time.Second)
	_, err = file.WriteString(entry(402, "stdout", "F", "line 402"))
	began := time.Now()
	must(t, errors.Join(err, file.Close()))
	f.await("line 402\nline 403\n")
	if took := time.Since(began); took > handover/2 {
		t.Errorf("that it was closed is known after %v", took)
	}

	older := path + ".20240506-070800" // and this one nobody closes
	must(t, os.Rename(path, older))
	file, err = os.OpenFile(older, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer file.Close()
	f.append(entry(404, "stdout", "F", "line 404"))
	f.await("line 402\nline 403\nline 404\n")
	f.end("line 402\nline 403\nline 404\n")
}

// TestSlowReaderMissesNothing: the log is rotated more than once, and compressed, while
// nobody reads what is written.
func TestSlowReaderMissesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	log, want := numbered(1, 100)
	write(t, path, log, 100)
	f := follow(t, path, Query{Tail: -1})
	f.await(want)
	f.mu.Lock() // it stops reading
	for i := 1; i <= 3; i++ {
		log, text := numbered(100*i+1, 100*i+100)
		f.append(entry(100*i, "stderr", "F", "before"))
		want += "before\n"
		must(t, os.Rename(path, fmt.Sprintf("%s.20240506-07000%d", path, i)))
		f.append(log)
		want += text
	}
	b, err := os.ReadFile(path + ".20240506-070001")
	must(t, err)
	write(t, path+".20240506-070001.gz", string(b), 100)
	must(t, os.Remove(path+".20240506-070001"))
	f.mu.Unlock()
	f.await(want)
	f.end(want)
}

func TestFollowEnds(t *testing.T) {
	path, text := rotated(t)
	t.Run("AtOnceWhenTheContainerHasEnded", func(t *testing.T) {
		f := &follower{t: t, more: make(chan struct{}, 1)}
		must(t, Copy(t.Context(), f, func() error { return nil }, path,
			Query{Tail: 3, Follow: true, Running: func(context.Context) bool { return false }}))
		if f.String() != lastOf(text, 3) {
			t.Errorf("got %q", f.String())
		}
	})
	t.Run("WithItsContext", func(t *testing.T) {
		f := follow(t, path, Query{Tail: 3})
		f.cancel()
		if err := <-f.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("WithItsLimit", func(t *testing.T) {
		f := follow(t, path, Query{Tail: 0, Limit: 10})
		f.append(entry(500, "stdout", "F", "0123456789 and more"))
		must(t, <-f.ended)
		if f.String() != "0123456789" {
			t.Errorf("got %q", f.String())
		}
	})
	t.Run("WithTheReader", func(t *testing.T) {
		gone := errors.New("the reader is gone")
		err := Copy(t.Context(), &bytes.Buffer{}, func() error { return gone }, path,
			Query{Tail: 0, Follow: true, Running: func(context.Context) bool { return true }})
		if !errors.Is(err, gone) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("AfterTheFileIsGoneDuringARotation", func(t *testing.T) {
		path, _ := rotated(t)
		f := follow(t, path, Query{Tail: 0})
		old := path + ".20240506-070700"
		must(t, os.Rename(path, old))
		file, err := os.OpenFile(old, os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		defer file.Close()
		must(t, os.WriteFile(path, nil, 0o640))
		time.Sleep(50 * time.Millisecond) // it has seen the new file
		must(t, os.Remove(path))
		f.end("")
	})
	t.Run("AfterTheFileIsGone", func(t *testing.T) {
		f := follow(t, path, Query{Tail: 1})
		f.await(read(t, path, Query{Tail: 1}))
		must(t, os.Remove(path))
		f.end(f.String())
	})
}

func TestEmptiedLogBeginsAnew(t *testing.T) {
	path, _ := rotated(t)
	f := follow(t, path, Query{Tail: 1})
	f.await("line 400\n")
	must(t, os.Truncate(path, 0))
	f.append(entry(401, "stdout", "F", "anew"))
	f.await("line 400\nanew\n")
	f.end("line 400\nanew\n")
}

// TestWithoutInotify: the kernel has no watcher for everybody.
func TestWithoutInotify(t *testing.T) {
	path, _ := rotated(t)
	w := &watch{}
	began := time.Now()
	if closed, err := w.wait(t.Context(), time.Hour); closed || err != nil || time.Since(began) < pollEvery {
		t.Errorf("it waited %v: %t, %v", time.Since(began), closed, err)
	}
	if w := newWatch(filepath.Join(path, "not", "there")); w.file != nil {
		t.Error("a directory that is not there is watched")
	}
}

func BenchmarkCopy(b *testing.B) {
	log, text := numbered(1, 100_000)
	path := filepath.Join(b.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(log), 0o640); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		var n discard
		if err := Copy(b.Context(), &n, func() error { return nil }, path, Query{Tail: -1}); err != nil || int(n) != len(text) {
			b.Fatal(err, n)
		}
	}
}

type discard int

func (d *discard) Write(b []byte) (int, error) { *d += discard(len(b)); return len(b), nil }
