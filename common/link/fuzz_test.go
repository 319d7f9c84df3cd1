package link_test

import (
	"bytes"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// FuzzStreamFrame feeds the judge of stream frames, as a peer over websocket can.
func FuzzStreamFrame(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}, true)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i'}, true)
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9}, false)
	f.Fuzz(func(t *testing.T, frame []byte, accepting bool) {
		sent, open, err := link.JudgeFrames(frame, accepting)
		if open > link.MaxStreams {
			t.Fatalf("%d streams are open", open)
		}
		if err == nil && !accepting && (open > 0 || sent > len(frame)) {
			t.Fatalf("nobody accepts, and %d streams are open, %d bytes were sent", open, sent)
		}
	})
}

// FuzzQUICFraming feeds the reader of messages, as a peer over QUIC can.
func FuzzQUICFraming(f *testing.F) {
	f.Add([]byte{0, 0, 3, 'h', 'i', 0, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0x82, 0x80, 0x80, 0x02, 'x'})
	f.Fuzz(func(t *testing.T, stream []byte) {
		messages := link.ReadQUICMessages(stream)
		var again []byte
		for _, m := range messages {
			if len(m) > wire.MaxMessage || len(m) > len(stream) {
				t.Fatalf("a message of %d bytes out of %d", len(m), len(stream))
			}
			again = link.AppendQUICMessage(again, m)
		}
		for i, m := range link.ReadQUICMessages(again) {
			if !bytes.Equal(m, messages[i]) {
				t.Fatalf("message %d is another when it is written and read again", i)
			}
		}
	})
}
