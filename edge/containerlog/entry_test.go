package containerlog

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// whole puts the pieces of a log together, entry by entry.
func whole(t *testing.T, r io.Reader) []string {
	t.Helper()
	s := newScanner(r)
	var out []string
	take := func(p *piece) {
		if p.first {
			stream := "out"
			if p.stderr {
				stream = "err"
			}
			out = append(out, stream+" "+string(p.stamp)+" ")
		}
		out[len(out)-1] += string(p.content)
	}
	for {
		p, err := s.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		take(p)
	}
	if p := s.rest(); p != nil {
		take(p)
	}
	return out
}

func TestEntriesAreCut(t *testing.T) {
	const at = "2024-05-06T07:08:09.123456789Z"
	long := strings.Repeat("x", 3*bufferSize)
	for _, c := range []struct {
		name, log string
		want      []string
	}{
		{"Lines", at + " stdout F one\n" + at + " stderr F two\n", []string{"out " + at + " one\n", "err " + at + " two\n"}},
		{"AnEmptyLine", at + " stdout F \n", []string{"out " + at + " \n"}},
		{"PartsOfALine", at + " stdout P one\n" + at + " stdout F two\n", []string{"out " + at + " one", "out " + at + " two\n"}},
		{"MoreTags", at + " stdout F:new:tag one\n", []string{"out " + at + " one\n"}},
		{"NoNewlineAtTheEnd", at + " stdout F one", []string{"out " + at + " one"}},
		{"ALineThatDoesNotFit", at + " stdout F " + long + "\n" + at + " stdout F two\n", []string{"out " + at + " " + long + "\n", "out " + at + " two\n"}},
		{"APartThatDoesNotFit", at + " stdout P " + long + "\n" + at + " stdout F two\n", []string{"out " + at + " " + long, "out " + at + " two\n"}},
		{"WhatIsNoEntry", "nonsense\n\x00\x00\x00" + at + " stdout F lost\n" + at + " stdin F no\n" + at + " stdout X no\n" + at + " stdout F\n" + at + " stdout F one\n", []string{"out " + at + " one\n"}},
		{"NonsenseThatDoesNotFit", long + long + "\n" + at + " stdout F one\n", []string{"out " + at + " one\n"}},
		{"Nothing", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(c.log), iotest.OneByteReader(strings.NewReader(c.log)), iotest.DataErrReader(strings.NewReader(c.log))} {
				got := whole(t, r)
				if strings.Join(got, "|") != strings.Join(c.want, "|") {
					t.Errorf("got %.300q, want %.300q", got, c.want)
				}
			}
		})
	}
}

// FuzzEntries: however a log is read, the same entries come of it, and they hold no more
// than it does; and both ways of looking for its last lines agree.
func FuzzEntries(f *testing.F) {
	f.Add([]byte("2024-05-06T07:08:09.1Z stdout F one\n2024-05-06T07:08:09.1Z stderr P two\nx\n2024-05-06T07:08:09.1Z stderr F three\n"), uint16(2))
	f.Add([]byte("2024-05-06T07:08:09.1Z stdout P one"), uint16(1))
	f.Add([]byte("\n\n \n"), uint16(0))
	f.Add(bytes.Repeat([]byte("2024-05-06T07:08:09.1Z stdout F a line of a log that does not fit into one block\n"), 1000), uint16(700))
	f.Fuzz(func(t *testing.T, log []byte, n uint16) {
		at := whole(t, bytes.NewReader(log))
		if byByte := whole(t, iotest.OneByteReader(bytes.NewReader(log))); strings.Join(at, "|") != strings.Join(byByte, "|") {
			t.Errorf("read at once %q, byte by byte %q", at, byByte)
		}
		total := 0
		for _, e := range at {
			total += len(e)
		}
		if total > len(log) {
			t.Errorf("%d bytes came out of %d", total, len(log))
		}
		if len(log) > 0 && log[len(log)-1] != '\n' {
			return // the end of a rotated log is that of a line
		}
		offset, found, err := lastLines(bytes.NewReader(log), int64(len(log)), int64(n), false)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := countLines(bytes.NewReader(log))
		if err != nil {
			t.Fatal(err)
		}
		if want := min(lines, int64(n)); found != want {
			t.Errorf("%d lines found backwards, %d forwards", found, want)
		}
		if left, err := countLines(bytes.NewReader(log[offset:])); err != nil || left != found {
			t.Errorf("%d lines behind the place where %d begin (%v)", left, found, err)
		}
		if lines > int64(n) {
			forwards, err := behindLines(bytes.NewReader(log), lines-int64(n))
			if err != nil {
				t.Fatal(err)
			}
			// What is no entry may lie between the two.
			if a, b := whole(t, bytes.NewReader(log[offset:])), whole(t, bytes.NewReader(log[forwards:])); strings.Join(a, "|") != strings.Join(b, "|") {
				t.Errorf("backwards the end is %q, forwards %q", a, b)
			}
		}
	})
}
