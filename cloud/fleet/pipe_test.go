package fleet

import (
	"bufio"
	"net"
	"os"
	"testing"
)

// pipe is a stream between two ends in memory.
type pipe struct {
	net.Conn
	reader *bufio.Reader
}

func (p *pipe) CloseWrite() error { return p.Close() }

func newPipe() (here, there *pipe) {
	a, b := net.Pipe()
	return &pipe{Conn: a}, &pipe{Conn: b, reader: bufio.NewReader(b)}
}

func loosen(t *testing.T, path string) {
	t.Helper()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
}
