package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of what an edge may send, beside MaxMessage. A decoded message takes
// more memory than its bytes: an empty ObjectRef is two bytes on the line and
// more than a hundred in memory. So the bytes are looked through before any of
// them is decoded.
const (
	// maxInventoryMessage bounds one part of an inventory; senders close it at
	// SoftMessage.
	maxInventoryMessage = 2 * SoftMessage
	// maxSmall bounds every other message but reports.
	maxSmall = 64 << 10
	// minRef is the fewest bytes of a reference with a version.
	minRef = 2 + 3 + 3 + 2 + VersionLen
)

var errTwice = errors.New("it has more than one body")

// The numbers of fields that matter here, as wire.proto has them.
const (
	fieldInventory      = protowire.Number(2) // of EdgeMessage
	fieldReport         = protowire.Number(4) // of EdgeMessage
	fieldInventoryItems = protowire.Number(1) // of Inventory
)

// checkBody refuses a message with more than one body that this build knows:
// protobuf would merge them, and no sender makes one. check sees the body.
func checkBody(b []byte, d protoreflect.MessageDescriptor, check func(body protowire.Number, value []byte) error) error {
	seen := false
	return eachField(b, func(n protowire.Number, value []byte) error {
		if d.Fields().ByNumber(n) == nil {
			return nil // of a newer peer
		}
		if seen {
			return errTwice
		}
		seen = true
		return check(n, value)
	})
}

// checkEdgeBody holds what an edge sends to the limits.
func checkEdgeBody(body protowire.Number, value []byte) error {
	switch body {
	case fieldReport:
		return nil
	case fieldInventory:
		if len(value) > maxInventoryMessage {
			return fmt.Errorf("an inventory of %d bytes exceeds the limit of %d", len(value), maxInventoryMessage)
		}
		return eachField(value, func(n protowire.Number, item []byte) error {
			if n == fieldInventoryItems && len(item) < minRef {
				return fmt.Errorf("an item of %d bytes is no reference", len(item))
			}
			return nil
		})
	}
	if len(value) > maxSmall {
		return fmt.Errorf("a body of %d bytes exceeds the limit of %d", len(value), maxSmall)
	}
	return nil
}

// maxParts is how many messages may be within the payload of one report: more than
// a device says with everything that it may say.
const maxParts = 64 << 10

// DecodePayload reads the payload of a report that is a message of this package,
// unless it would take much more memory than its bytes. Every error wraps
// ErrMalformed.
func DecodePayload(b []byte, m proto.Message) error {
	left := maxParts
	err := countParts(b, m.ProtoReflect().Descriptor(), &left)
	if err == nil {
		err = proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}

func countParts(b []byte, d protoreflect.MessageDescriptor, left *int) error {
	return eachField(b, func(n protowire.Number, value []byte) error {
		f := d.Fields().ByNumber(n)
		if f == nil || f.Message() == nil {
			return nil
		}
		if *left--; *left < 0 {
			return fmt.Errorf("it has more than %d parts", maxParts)
		}
		return countParts(value, f.Message(), left)
	})
}

// eachField calls f with the fields of b; value is nil unless it is bytes.
func eachField(b []byte, f func(n protowire.Number, value []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var value []byte
		if kind == protowire.BytesType {
			value, n = protowire.ConsumeBytes(b)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(number, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
