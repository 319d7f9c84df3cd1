package containerlog

import (
	"bytes"
	"errors"
	"io"
)

// lastLines finds where the last n lines of the first size bytes of a log begin. It
// reads backwards, no more than it must. newest: what comes last is a line although
// the container has not ended it yet; in an earlier file its end is in the next one.
// found is how many lines there are, n at most.
func lastLines(f io.ReaderAt, size, n int64, newest bool) (offset, found int64, err error) {
	const block = bufferSize
	buf := make([]byte, block+maxHeader)
	begin := size // of the line behind the one that is looked at
	for end := size; end > 0; {
		from := max(end-block, 0)
		b := buf[:min(end+maxHeader, size)-from]
		if err := readAt(f, b, from); err != nil {
			return 0, 0, err
		}
		for i := int(end - from); i > 0; {
			i = bytes.LastIndexByte(b[:i], '\n')
			if i < 0 && from > 0 {
				break
			}
			start := from + int64(i) + 1
			if start == size { // behind the last newline there is no line
				continue
			}
			if p, _, ok := parseHeader(firstLine(b[i+1:])); ok && (!p.partial || newest && begin == size) {
				if found == n {
					return begin, found, nil
				}
				found++
			}
			begin = start
			if i < 0 {
				break
			}
		}
		end = from
	}
	return 0, found, nil
}

func firstLine(b []byte) []byte {
	if end := bytes.IndexByte(b, '\n'); end >= 0 {
		return b[:end+1]
	}
	return b
}

func readAt(f io.ReaderAt, b []byte, offset int64) error {
	n, err := f.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF // somebody has cut it short
	}
	return err
}

// countLines counts the lines that end in a log which can only be read forwards.
func countLines(r io.Reader) (int64, error) {
	var lines int64
	s := newScanner(r)
	for {
		p, err := s.next()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return 0, err
		}
		if p.endsLine() {
			lines++
		}
	}
}

// behindLines is where the first n lines of a log end.
func behindLines(r io.Reader, n int64) (int64, error) {
	s := newScanner(r)
	for n > 0 {
		p, err := s.next()
		if err != nil {
			return 0, err
		}
		if p.endsLine() {
			n--
		}
	}
	return s.offset, nil
}
