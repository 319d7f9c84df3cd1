package wire

import (
	_ "embed" // the dictionary
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
)

// The first byte of every message says how the rest is encoded.
const (
	encodingPlain = 0
	encodingZstd  = 1 // one zstd frame (RFC 8878) that states its content's size
)

const (
	// dictionaryID names the only dictionary so far. Its bytes are a part of
	// protocol version 1 and never change; see keps/0013-compression.md.
	dictionaryID = 1
	// worthwhile is the size from which messages are compressed: below it what is
	// saved is less than what a packet costs anyhow.
	worthwhile = 128
	// saving is the least that compressing must save.
	saving = 16
	// maxExpansion is how many times its size a compressed message may become: who
	// wants a peer to hold 4 MiB must send 64 KiB. What compresses better is sent
	// as it is.
	maxExpansion = 64
	// window is how far back a hub's encoder looks, and smallWindow an edge's, which
	// has less memory and sends less.
	window, smallWindow = 128 << 10, 32 << 10
	// large is the size from which a message gets a decoder of its own: decoders
	// hold on to what they made last.
	large = 64 << 10
	// maxCoders is how many messages a hub compresses or expands at a time.
	maxCoders = 4
)

//go:embed dictionary/1.bin
var dictionary []byte

// An encoder takes some 750 KiB, a decoder 20 to 150. They are made when first
// needed, once a process, which is either an edge or a hub: an edge compresses what
// goes up, one message at a time, and expands what comes down; a hub does the
// opposite for many nodes. Once made they never change.
var (
	compressUp   = sync.OnceValue(func() *zstd.Encoder { return newEncoder(1, smallWindow) })
	compressDown = sync.OnceValue(func() *zstd.Encoder { return newEncoder(hubCoders(), window) })
	expandUp     = sync.OnceValue(func() *zstd.Decoder { return newDecoder(hubCoders()) })
	expandDown   = sync.OnceValue(func() *zstd.Decoder { return newDecoder(1) })
)

func hubCoders() int { return min(runtime.GOMAXPROCS(0), maxCoders) }

func newEncoder(concurrency, window int) *zstd.Encoder {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderDictRaw(dictionaryID, dictionary), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(window),
		zstd.WithLowerEncoderMem(true), zstd.WithEncoderConcurrency(concurrency), zstd.WithSingleSegment(true),
		zstd.WithAllLitEntropyCompression(true), zstd.WithEncoderCRC(false)) // TLS knows whether a byte has changed
	if err != nil {
		panic(err) // the options are constants
	}
	return e
}

func newDecoder(concurrency int) *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderDictRaw(dictionaryID, dictionary), zstd.WithDecoderMaxMemory(MaxMessage), zstd.WithDecoderMaxWindow(MaxMessage),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(concurrency))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
}

// compress returns the encoded message if that is worthwhile. plain is a message
// with its encoding byte.
func compress(e *zstd.Encoder, plain []byte) (encoded []byte, ok bool) {
	encoded = make([]byte, 1, len(plain))
	encoded[0] = encodingZstd
	encoded = e.EncodeAll(plain[1:], encoded)
	return encoded, len(encoded)+saving <= len(plain) && len(plain) <= maxExpansion*len(encoded)
}

var errExpansion = fmt.Errorf("it expands more than %d times", maxExpansion)

// expand returns the content of a zstd frame. No memory is given before the size
// that the frame states is known to be allowed.
func expand(d *zstd.Decoder, frame []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return nil, err
	}
	switch {
	case h.Skippable || !h.SingleSegment || !h.HasFCS:
		return nil, errors.New("it does not state its size")
	case h.FrameContentSize > MaxMessage:
		return nil, fmt.Errorf("its %d bytes exceed the limit of %d", h.FrameContentSize, MaxMessage)
	case h.FrameContentSize > uint64(maxExpansion*(1+len(frame))):
		return nil, errExpansion
	case h.DictionaryID != 0 && h.DictionaryID != dictionaryID:
		return nil, fmt.Errorf("its dictionary %d is not known", h.DictionaryID)
	case frameLen(h, frame) != len(frame):
		return nil, errors.New("it is not one whole frame")
	}
	if h.FrameContentSize > large {
		d = newDecoder(1)
		defer d.Close()
	}
	content, err := d.DecodeAll(frame, make([]byte, 0, h.FrameContentSize))
	if err != nil {
		return nil, err
	}
	if uint64(len(content)) != h.FrameContentSize {
		return nil, fmt.Errorf("it holds %d bytes and states %d", len(content), h.FrameContentSize)
	}
	return content, nil
}

// frameLen is where the first frame ends by the headers of its blocks (RFC 8878,
// section 3.1.1), or -1.
func frameLen(h zstd.Header, frame []byte) int {
	const last, rle, reserved = 1, 1, 3
	for at := h.HeaderSize; at+3 <= len(frame); {
		header := int(frame[at]) | int(frame[at+1])<<8 | int(frame[at+2])<<16
		size := header >> 3
		switch header >> 1 & 3 {
		case rle:
			size = 1
		case reserved:
			return -1
		}
		at += 3 + size
		if header&last != 0 {
			if h.HasCheckSum {
				at += 4
			}
			return at
		}
	}
	return -1
}

// compressible says that nothing can be learnt from how well a message
// compresses. What is secret is never compressed, least of all together with what
// somebody else may have written: who sees how long messages are could guess the
// one by the other. See keps/0013-compression.md.
func compressible(m proto.Message) bool {
	switch m := m.(type) {
	case *EdgeMessage:
		switch m.GetBody().(type) {
		case *EdgeMessage_Inventory, *EdgeMessage_Report:
			return true
		}
	case *HubMessage:
		changes := m.GetChanges()
		for _, o := range changes.GetUpserts() {
			if o.GetRef().GetKind() == Kind_KIND_SECRET {
				return false
			}
		}
		return changes != nil
	}
	return false
}
