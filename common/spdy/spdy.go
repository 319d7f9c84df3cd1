// Package spdy knows where the frames of a SPDY/3.1 connection begin and end, which is
// what it takes to say a word between two of them. It looks into no frame but a ping.
//
// Source: the SPDY protocol, draft 3.1, section 2.2: each frame is eight bytes of header,
// of which the last three are the length of what follows.
package spdy

import "encoding/binary"

// HeaderSize is the size of a frame's header in bytes, and PingSize that of a ping.
const (
	HeaderSize = 8
	PingSize   = HeaderSize + 4
)

// size is that of the frame whose header this is, header included.
func size(header []byte) int {
	return HeaderSize + int(binary.BigEndian.Uint32(header[4:])&0xffffff)
}

// Frames follows one direction of a connection. Its zero value is at the beginning.
type Frames struct {
	header [HeaderSize]byte // of the frame that begins
	got    int              // bytes of it
	rest   int              // bytes of the frame that are still to come
}

// Between says that what was followed ends where a frame does.
func (f *Frames) Between() bool { return f.got == 0 && f.rest == 0 }

// Follow follows all of b.
func (f *Frames) Follow(b []byte) {
	for len(b) > 0 {
		b = b[f.Next(b):]
	}
}

// Data says of the frame that was followed last which stream's data it has, and how much;
// false: it has none.
func (f *Frames) Data() (stream uint32, size int, ok bool) {
	stream = binary.BigEndian.Uint32(f.header[:])
	return stream, int(binary.BigEndian.Uint32(f.header[4:]) & 0xffffff), f.got == 0 && stream&(1<<31) == 0
}

// Opens says of the frame that was followed last that it opens a stream (SYN_STREAM).
func (f *Frames) Opens() bool { return f.got == 0 && string(f.header[:4]) == "\x80\x03\x00\x01" }

// Next follows b to the end of the frame that it begins in, or to its own end, and says
// how many bytes that are: at least one unless b is empty.
func (f *Frames) Next(b []byte) int {
	n := 0
	if f.rest == 0 {
		n = copy(f.header[f.got:], b)
		if f.got += n; f.got < HeaderSize {
			return n
		}
		f.got, f.rest = 0, size(f.header[:])-HeaderSize
	}
	more := min(f.rest, len(b)-n)
	f.rest -= more
	return n + more
}

// Pings takes the pings of the client out of what it sends.
type Pings struct {
	held []byte // the beginning of a frame of which too little has come: under PingSize
	rest int    // bytes of the frame that are still to come
}

// Take hands on what is in b, in order: to pass all but pings, and to ping those that the
// client began (their numbers are odd), whole. It ends with the first error of pass. What
// is handed on is b's own memory, or of this call alone.
func (p *Pings) Take(b []byte, pass func([]byte) error, ping func([]byte)) error {
	if len(p.held) > 0 {
		b, p.held = append(p.held, b...), nil
	}
	at := min(p.rest, len(b))
	p.rest -= at
	begun := 0
	for at < len(b) {
		frame := b[at:]
		if isPing(frame) {
			if len(frame) < PingSize {
				p.held = append([]byte(nil), frame...)
				break
			}
			if frame[PingSize-1]&1 == 1 {
				if err := passAny(b[begun:at], pass); err != nil {
					return err
				}
				ping(frame[:PingSize])
				at += PingSize
				begun = at
				continue
			}
		}
		if len(frame) < HeaderSize {
			p.held = append([]byte(nil), frame...)
			break
		}
		whole := size(frame)
		step := min(whole, len(frame))
		p.rest = whole - step
		at += step
	}
	return passAny(b[begun:at], pass)
}

func passAny(b []byte, pass func([]byte) error) error {
	if len(b) == 0 {
		return nil
	}
	return pass(b)
}

// isPing says whether a frame is a ping, as far as its header has come.
func isPing(frame []byte) bool {
	return len(frame) >= HeaderSize && string(frame[:HeaderSize]) == "\x80\x03\x00\x06\x00\x00\x00\x04"
}
