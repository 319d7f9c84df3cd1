package link

import (
	"encoding/binary"
	"io"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// appendLength begins a message on the stream of a QUIC connection: its length
// plus one, as a varint.
func appendLength(b []byte, length int) []byte { return binary.AppendUvarint(b, uint64(length)+1) }

// readFramed reads one message, past keepalives; next and some read from the same
// stream.
func readFramed(next io.ByteReader, some func([]byte) (int, error)) ([]byte, error) {
	var size uint64
	for size == 0 { // zeros are keepalives
		var err error
		if size, err = binary.ReadUvarint(next); err != nil {
			return nil, err
		}
	}
	size--
	if size > wire.MaxMessage {
		return nil, ErrTooLarge
	}
	// The size is the peer's word: memory is given only as the bytes come.
	message := make([]byte, 0, min(size, 512))
	for uint64(len(message)) < size {
		if len(message) == cap(message) {
			message = append(message, 0)[:len(message)]
		}
		room := min(cap(message), int(size))
		n, err := some(message[len(message):room])
		message = message[:len(message)+n]
		if uint64(len(message)) < size && err != nil {
			return nil, err
		}
	}
	return message, nil
}
