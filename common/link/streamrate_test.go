package link_test

import (
	"context"
	"io"
	"syscall"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
)

// BenchmarkStream moves a MiB through a stream beside nothing else, and then a few bytes
// there and back: how fast, and what processor both ends together spend on it.
func BenchmarkStream(b *testing.B) {
	ca := linktest.NewCA(b)
	for _, transport := range []struct {
		name  string
		start func(*testing.B) (link.Acceptor, link.Dialer)
	}{
		{"websocket", func(b *testing.B) (link.Acceptor, link.Dialer) {
			h := linktest.StartHub(b, ca, link.Timing{})
			return h.Acceptor, h.Dialer(b, "till-1")
		}},
		{"quic", func(b *testing.B) (link.Acceptor, link.Dialer) {
			h := linktest.StartQUICHub(b, ca, link.Timing{})
			return h.Acceptor, link.DialQUIC(h.DialOptions(b, "till-1"))
		}},
	} {
		acceptor, dialer := transport.start(b)
		accepted := make(chan link.Conn, 1)
		go func() {
			if c, err := acceptor.Accept(b.Context()); err == nil {
				accepted <- c
			}
		}()
		edge, err := dialer.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		hub := <-accepted
		streams := make(chan link.Stream)
		for _, c := range []link.Conn{edge, hub} { // streams move while somebody receives
			go func() {
				for {
					if _, err := c.Recv(context.Background()); err != nil {
						return
					}
				}
			}()
		}
		go func() {
			for {
				s, err := edge.AcceptStream(context.Background())
				if err != nil {
					return
				}
				streams <- s
			}
		}()
		atHub, err := hub.OpenStream(b.Context())
		for err != nil { // until the edge takes streams
			atHub, err = hub.OpenStream(b.Context())
		}
		atEdge := <-streams
		for _, way := range []struct {
			name     string
			from, to link.Stream
		}{{"down", atHub, atEdge}, {"up", atEdge, atHub}} {
			b.Run(transport.name+"/"+way.name, func(b *testing.B) { move(b, way.from, way.to) })
		}
		b.Run(transport.name+"/there and back", func(b *testing.B) { thereAndBack(b, atHub, atEdge) })
		edge.Close()
		hub.Close()
	}
}

func move(b *testing.B, from, to link.Stream) {
	const size = 1 << 20
	b.SetBytes(size)
	read := make(chan error, 1)
	before := processor(b)
	go func() {
		_, err := io.CopyBuffer(io.Discard, io.LimitReader(struct{ io.Reader }{to}, int64(b.N)*size), make([]byte, 32<<10))
		read <- err
	}()
	piece := make([]byte, 32<<10)
	for range b.N * size / len(piece) {
		if _, err := from.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-read; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric((processor(b)-before)*1000/float64(b.N), "cpu-ms/MiB")
}

func thereAndBack(b *testing.B, hub, edge link.Stream) {
	echoed := make(chan error, 1)
	before := processor(b)
	go func() {
		few := make([]byte, 100)
		for range b.N {
			if _, err := io.ReadFull(edge, few); err != nil {
				echoed <- err
				return
			}
			if _, err := edge.Write(few); err != nil {
				echoed <- err
				return
			}
		}
		echoed <- nil
	}()
	few := make([]byte, 100)
	for range b.N {
		if _, err := hub.Write(few); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(hub, few); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-echoed; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric((processor(b)-before)*1000/float64(b.N), "cpu-ms/op")
}

// processor is the seconds of processor that this process has used.
func processor(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(u.Utime) + seconds(u.Stime)
}
