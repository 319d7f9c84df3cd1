package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// ProtocolVersion is what this build speaks, and the only one so far.
const ProtocolVersion = 1

// Limits of one message, in bytes. An apiserver takes objects of about 1.5 MiB
// at most, so one object always fits.
const (
	// MaxMessage is the largest message that either side accepts, on the line and
	// expanded.
	MaxMessage = 4 << 20
	// SoftMessage is where a sender closes a batch (Changes, Inventory) and
	// begins the next; a single larger object still travels alone.
	SoftMessage = 256 << 10
	// VersionLen is the length of an object's version.
	VersionLen = 16
	// DigestLen is the length of a digest.
	DigestLen = sha256.Size
)

// ErrMalformed is what every decoding error wraps.
var ErrMalformed = errors.New("malformed message")

// Encode returns m as it travels: a byte that says how it is encoded, and the
// rest. It fails if the message would exceed MaxMessage, compressed or not.
func Encode(m proto.Message) ([]byte, error) {
	if down, ok := m.(*HubMessage); ok {
		m = down.packed()
	}
	name := m.ProtoReflect().Descriptor().Name()
	size := 1 + proto.Size(m)
	if size > MaxMessage {
		return nil, fmt.Errorf("encode %s: %d bytes exceed the limit of %d", name, size, MaxMessage)
	}
	plain := make([]byte, 1, size)
	plain[0] = encodingPlain
	plain, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(plain, m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", name, err)
	}
	if len(plain) < worthwhile || !compressible(m) {
		return plain, nil
	}
	encoder := compressDown
	if _, up := m.(*EdgeMessage); up {
		encoder = compressUp
	}
	if encoded, ok := compress(encoder(), plain); ok {
		return encoded, nil
	}
	return plain, nil
}

// DecodeEdge reads a message that an edge sent. The hub must expect anything:
// every error wraps ErrMalformed.
func DecodeEdge(b []byte) (*EdgeMessage, error) {
	m := new(EdgeMessage)
	if err := decode(b, m, expandUp, checkEdgeBody); err != nil {
		return nil, err
	}
	switch body := m.GetBody().(type) {
	case *EdgeMessage_Inventory:
		for _, r := range body.Inventory.GetItems() {
			if err := checkRef(r, true); err != nil {
				return nil, err
			}
		}
	case *EdgeMessage_Hello:
		if n := len(body.Hello.GetDigest()); n != DigestLen {
			return nil, fmt.Errorf("%w: hello: digest of %d bytes, want %d", ErrMalformed, n, DigestLen)
		}
	}
	return m, nil
}

// DecodeHub reads a message that a hub sent. Every error wraps ErrMalformed.
func DecodeHub(b []byte) (*HubMessage, error) {
	m := new(HubMessage)
	if err := decode(b, m, expandDown, func(protowire.Number, []byte) error { return nil }); err != nil {
		return nil, err
	}
	switch body := m.GetBody().(type) {
	case *HubMessage_Changes:
		for _, o := range body.Changes.GetUpserts() {
			if err := checkRef(o.GetRef(), true); err != nil {
				return nil, err
			}
			if !bytes.Equal(Version(o.GetPayload()), o.GetRef().GetVersion()) {
				return nil, fmt.Errorf("%w: %s: the payload is not of the stated version", ErrMalformed, Describe(o.GetRef()))
			}
		}
		for _, r := range body.Changes.GetDeletes() {
			if err := checkRef(r, false); err != nil {
				return nil, err
			}
		}
	case *HubMessage_TokenAnswer:
		if err := body.TokenAnswer.unpack(); err != nil {
			return nil, err
		}
	case *HubMessage_Synced:
		if n := len(body.Synced.GetDigest()); n != DigestLen {
			return nil, fmt.Errorf("%w: synced: digest of %d bytes, want %d", ErrMalformed, n, DigestLen)
		}
	}
	return m, nil
}

func decode(b []byte, m proto.Message, expander func() *zstd.Decoder, check func(body protowire.Number, value []byte) error) error {
	d := m.ProtoReflect().Descriptor()
	if len(b) > MaxMessage {
		return fmt.Errorf("%w: %s: %d bytes exceed the limit of %d", ErrMalformed, d.Name(), len(b), MaxMessage)
	}
	body, err := content(b, expander)
	if err == nil {
		err = checkBody(body, d, check)
	}
	if err == nil {
		err = proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(body, m)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, d.Name(), err)
	}
	return nil
}

// content undoes the encoding of a message.
func content(b []byte, expander func() *zstd.Decoder) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("it is empty")
	}
	switch b[0] {
	case encodingPlain:
		return b[1:], nil
	case encodingZstd:
		body, err := expand(expander(), b[1:])
		if err != nil {
			return nil, fmt.Errorf("expand: %w", err)
		}
		return body, nil
	}
	return nil, fmt.Errorf("encoding %d is not known", b[0])
}

// checkRef holds what both sides rely on: a known kind, a name, a uid that is
// safe in a path, and a version where one belongs.
func checkRef(r *ObjectRef, versioned bool) error {
	switch {
	case r == nil:
		return fmt.Errorf("%w: object without a reference", ErrMalformed)
	case r.Kind < KindMin || r.Kind > KindMax:
		return fmt.Errorf("%w: unknown kind %d of object %s/%s", ErrMalformed, r.Kind, r.Namespace, r.Name)
	case r.Name == "" || len(r.Name) > 253 || strings.ContainsAny(r.Name, "/\x00") || r.Name == "." || r.Name == "..":
		return fmt.Errorf("%w: bad name %q", ErrMalformed, r.Name)
	case len(r.Namespace) > 63 || strings.ContainsAny(r.Namespace, "/.\x00"):
		return fmt.Errorf("%w: bad namespace %q", ErrMalformed, r.Namespace)
	case r.Uid == "" || len(r.Uid) > 128 || strings.ContainsAny(r.Uid, "/\x00") || strings.Contains(r.Uid, ".."):
		return fmt.Errorf("%w: bad uid %q of %s/%s", ErrMalformed, r.Uid, r.Namespace, r.Name)
	case versioned && len(r.Version) != VersionLen:
		return fmt.Errorf("%w: %s: version of %d bytes, want %d", ErrMalformed, Describe(r), len(r.Version), VersionLen)
	}
	return nil
}

// KindMin and KindMax bound the kinds that this build knows. An edge states KindMax in
// its Hello, and is sent no object of a kind above that.
const (
	KindMin = Kind_KIND_POD
	KindMax = Kind_KIND_ROUTE
)

// Describe names an object for people: "pod shop/till (uid 1234)".
func Describe(r *ObjectRef) string {
	kind := map[Kind]string{
		Kind_KIND_POD: "pod", Kind_KIND_CONFIG_MAP: "configmap", Kind_KIND_SECRET: "secret", Kind_KIND_NODE: "node",
		Kind_KIND_DEVICE_MODEL: "device model", Kind_KIND_DEVICE: "device", Kind_KIND_ROUTE: "route",
	}[r.GetKind()]
	if kind == "" {
		kind = r.GetKind().String()
	}
	name := r.GetName()
	if r.GetNamespace() != "" {
		name = r.GetNamespace() + "/" + name
	}
	return fmt.Sprintf("%s %s (uid %s)", kind, name, r.GetUid())
}

// Version is the version of a payload.
func Version(payload []byte) []byte {
	sum := sha256.Sum256(payload)
	return sum[:VersionLen]
}

// Digest is one number for a set of objects, whatever their order. Both sides
// compute it over what they hold; equal digests mean that nothing need be sent.
// Each reference is hashed with its lengths, so that no two sets read alike.
func Digest(refs []*ObjectRef) []byte {
	sorted := slices.Clone(refs)
	slices.SortFunc(sorted, CompareRefs)
	h := sha256.New()
	var n [4]byte
	field := func(b []byte) {
		binary.BigEndian.PutUint32(n[:], uint32(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	for _, r := range sorted {
		binary.BigEndian.PutUint32(n[:], uint32(r.GetKind()))
		h.Write(n[:])
		field([]byte(r.GetNamespace()))
		field([]byte(r.GetName()))
		field([]byte(r.GetUid()))
		field(r.GetVersion())
	}
	return h.Sum(nil)
}

// CompareRefs orders references by kind, namespace, name and uid.
func CompareRefs(a, b *ObjectRef) int {
	if c := int(a.GetKind()) - int(b.GetKind()); c != 0 {
		return c
	}
	if c := strings.Compare(a.GetNamespace(), b.GetNamespace()); c != 0 {
		return c
	}
	if c := strings.Compare(a.GetName(), b.GetName()); c != 0 {
		return c
	}
	return strings.Compare(a.GetUid(), b.GetUid())
}

// Lineage names one lineage of a node's database: versions and numbers compare only
// within it.
func Lineage(storeID string, lineage uint64) string {
	if lineage == 0 {
		return storeID
	}
	return fmt.Sprintf("%s.%d", storeID, lineage)
}
