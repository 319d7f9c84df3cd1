package spdy_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/holdfast-edge/holdfast/common/spdy"
)

func ping(id byte) []byte { return []byte{0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, id} }

func data(text string) []byte {
	return append([]byte{0, 0, 0, 5, 1, 0, 0, byte(len(text))}, text...)
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// take hands all to p in pieces of that size.
func take(p *spdy.Pings, all []byte, piece int) (passed, pings []byte) {
	for at := 0; at < len(all); at += piece {
		b := bytes.Clone(all[at:min(at+piece, len(all))])
		err := p.Take(b, func(b []byte) error { passed = append(passed, b...); return nil }, func(b []byte) { pings = append(pings, b...) })
		if err != nil {
			panic(err)
		}
		clear(b) // it is the caller's again
	}
	return passed, pings
}

func TestPingsAreTakenOut(t *testing.T) {
	all := join(data("one"), ping(1), ping(2), data(string(ping(1))), ping(3), data(""), data("two"), ping(5))
	rest := join(data("one"), ping(2), data(string(ping(1))), data(""), data("two"))
	for piece := 1; piece <= len(all); piece++ {
		passed, pings := take(new(spdy.Pings), all, piece)
		if !bytes.Equal(passed, rest) {
			t.Fatalf("in pieces of %d there passes\n%x, want\n%x", piece, passed, rest)
		}
		if !bytes.Equal(pings, join(ping(1), ping(3), ping(5))) {
			t.Fatalf("in pieces of %d these are pings: %x", piece, pings)
		}
	}
}

func TestWhatIsNotTakenEndsIt(t *testing.T) {
	no := errors.New("no")
	if err := new(spdy.Pings).Take(data("one"), func([]byte) error { return no }, nil); !errors.Is(err, no) {
		t.Error(err)
	}
}

func TestWhereFramesEnd(t *testing.T) {
	frames := [][]byte{data("one"), ping(1), data(""), data("three")}
	var f spdy.Frames
	for i, frame := range frames {
		if !f.Between() {
			t.Fatalf("not between two frames before frame %d", i)
		}
		for at := 1; at < len(frame); at++ {
			if f.Follow(frame[at-1 : at]); f.Between() {
				t.Fatalf("between two frames after %d of %d bytes", at, len(frame))
			}
		}
		f.Follow(frame[len(frame)-1:])
	}
	all := join(frames...)
	for _, frame := range frames {
		if n := f.Next(all); n != len(frame) {
			t.Fatalf("a frame of %d bytes, want %d", n, len(frame))
		}
		if stream, size, ok := f.Data(); ok != (frame[0] == 0) || ok && (stream != 5 || size != len(frame)-spdy.HeaderSize) {
			t.Errorf("%x: data of stream %d, %d bytes, %v", frame, stream, size, ok)
		}
		all = all[len(frame):]
	}
}

// FuzzPings: nothing is lost and nothing is added, whatever comes, and in which pieces.
func FuzzPings(f *testing.F) {
	f.Add(join(data("one"), ping(1), ping(2)), uint8(3))
	f.Add([]byte{0x80, 3, 0, 6, 0, 0, 0, 4, 0}, uint8(1))
	f.Add([]byte{0x80, 3, 0, 6, 0, 0xff, 0xff, 0xff, 1, 2}, uint8(2))
	f.Fuzz(func(t *testing.T, all []byte, piece uint8) {
		whole, pings := take(new(spdy.Pings), all, len(all)+1)
		passed, same := take(new(spdy.Pings), all, int(piece)+1)
		if !bytes.Equal(whole, passed) || !bytes.Equal(pings, same) {
			t.Errorf("in pieces of %d: %x and %x; at once: %x and %x", piece+1, passed, same, whole, pings)
		}
		held := len(all) - len(whole) - len(pings)
		if held < 0 || held >= spdy.PingSize || len(pings)%spdy.PingSize != 0 {
			t.Errorf("%d bytes: %d pass, %d are pings", len(all), len(whole), len(pings))
		}
		var at spdy.Frames
		at.Follow(all)
		if at.Between() != (held == 0 && betweenAtOnce(all)) {
			t.Errorf("%x: between %v, %d bytes are held", all, at.Between(), held)
		}
	})
}

// betweenAtOnce says whether all ends where a frame does.
func betweenAtOnce(all []byte) bool {
	for len(all) >= spdy.HeaderSize {
		size := spdy.HeaderSize + int(all[5])<<16 + int(all[6])<<8 + int(all[7])
		if size > len(all) {
			return false
		}
		all = all[size:]
	}
	return len(all) == 0
}
