package containerlog

import (
	"bytes"
	"io"
	"time"
)

// bufferSize holds an entry of containerd (16 KiB of content) with room to spare. A
// longer one, of a runtime that was told not to cut lines, comes in pieces.
const bufferSize = 32 << 10

// piece is an entry of the log, or a part of one that is too long for the buffer.
type piece struct {
	stamp   []byte // of the entry, as it is written
	stderr  bool
	partial bool   // the entry does not end its line
	first   bool   // the entry begins with this piece
	last    bool   // the entry ends with it
	content []byte // the newline included, if it ends a line; valid until the next piece
}

// endsLine tells whether a line of the container ends with the piece.
func (p *piece) endsLine() bool { return p.last && !p.partial }

// maxHeader is more than what comes before the content of an entry.
const maxHeader = 64

// parseHeader takes apart what comes before the content:
//
//	2016-10-06T00:17:09.669794202Z stdout F content
//
// More tags than the first may follow it behind colons.
func parseHeader(line []byte) (p piece, content int, ok bool) {
	line = line[:min(len(line), maxHeader)]
	stamp := bytes.IndexByte(line, ' ')
	if stamp < len("2006-01-02T15:04:05Z") || line[4] != '-' || line[10] != 'T' {
		return p, 0, false
	}
	p.stamp = line[:stamp]
	rest := line[stamp+1:]
	switch {
	case bytes.HasPrefix(rest, []byte("stdout ")):
	case bytes.HasPrefix(rest, []byte("stderr ")):
		p.stderr = true
	default:
		return p, 0, false
	}
	rest = rest[len("stdout "):]
	tags := bytes.IndexByte(rest, ' ')
	if tags < 1 {
		return p, 0, false
	}
	switch tag, _, _ := bytes.Cut(rest[:tags], []byte(":")); string(tag) {
	case "P":
		p.partial = true
	case "F":
	default:
		return p, 0, false
	}
	return p, stamp + 1 + len("stdout ") + tags + 1, true
}

// time is when the entry was written; ok is false for what is no time.
func (p *piece) time() (t time.Time, ok bool) {
	t, err := time.Parse(time.RFC3339Nano, string(p.stamp))
	return t, err == nil
}

// scanner cuts a log into entries. What is no entry (a power cut leaves such) is
// left out.
type scanner struct {
	r      io.Reader
	buf    []byte
	lo, hi int
	seen   int   // bytes behind lo in which there is no newline
	offset int64 // in the log, of buf[lo]
	inside bool  // an entry has begun and not ended
	bad    bool  // inside of what is no entry
	entry  piece // the one that it is inside of
	stamp  [maxHeader]byte
}

func newScanner(r io.Reader) *scanner {
	return &scanner{r: r, buf: make([]byte, bufferSize)}
}

// reset goes on in another file.
func (s *scanner) reset(r io.Reader, offset int64) {
	s.r, s.lo, s.hi, s.seen, s.offset, s.inside, s.bad = r, 0, 0, 0, offset, false, false
}

// next returns the next piece. After io.EOF it may be called again, when the log has
// grown.
func (s *scanner) next() (*piece, error) {
	for {
		data := s.buf[s.lo:s.hi]
		if end := bytes.IndexByte(data[s.seen:], '\n'); end >= 0 {
			end += s.seen
			s.take(end + 1)
			if p := s.cut(data[:end+1], true); p != nil {
				return p, nil
			}
			continue
		}
		if len(data) == len(s.buf) {
			s.take(len(data))
			if p := s.cut(data, false); p != nil {
				return p, nil
			}
			continue
		}
		if s.lo > 0 {
			copy(s.buf, data)
			s.lo, s.hi = 0, len(data)
		}
		s.seen = len(data)
		n, err := s.r.Read(s.buf[s.hi:])
		s.hi += n
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

// rest is what is left at the end of a log that does not end with a newline.
func (s *scanner) rest() *piece {
	data := s.buf[s.lo:s.hi]
	s.take(len(data))
	if len(data) == 0 {
		return nil
	}
	return s.cut(data, true)
}

func (s *scanner) take(n int) {
	s.lo, s.seen = s.lo+n, 0
	s.offset += int64(n)
}

// cut makes a piece of data, which ends its entry or not; nil: it is no entry.
func (s *scanner) cut(data []byte, ends bool) *piece {
	begins := !s.inside
	s.inside = !ends
	if begins {
		p, content, ok := parseHeader(data)
		if s.bad = !ok; ok {
			p.stamp = s.stamp[:copy(s.stamp[:], p.stamp)] // it outlives the buffer's content
			s.entry, data = p, data[content:]
		}
	}
	if s.bad {
		return nil
	}
	s.entry.first, s.entry.last = begins, ends
	if ends && s.entry.partial {
		data = bytes.TrimSuffix(data, []byte("\n"))
	}
	s.entry.content = data
	return &s.entry
}
