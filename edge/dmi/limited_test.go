package dmi

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestAFullHouseEndsToo: who waits for a place does not hold up the end.
func TestAFullHouseEndsToo(t *testing.T) {
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l := newLimited(inner, 1)
	ended := make(chan error, 1)
	full := make(chan struct{})
	go func() {
		_, err := l.Accept()
		close(full)
		for err == nil {
			_, err = l.Accept()
		}
		ended <- err
	}()
	conn, err := net.Dial("unix", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-full
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("Accept goes on waiting")
	}
}
