package wire

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
)

// The seeds are in testdata/fuzz.

func FuzzDecodeEdge(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeEdge(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v is not ErrMalformed", err)
			}
			return
		}
		if h := m.GetHello(); h != nil && len(h.GetDigest()) != DigestLen {
			t.Fatalf("accepted a digest of %d bytes", len(h.GetDigest()))
		}
		comesBack(t, m)
	})
}

func FuzzDecodeHub(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeHub(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v is not ErrMalformed", err)
			}
			return
		}
		for _, o := range m.GetChanges().GetUpserts() {
			if !bytes.Equal(Version(o.GetPayload()), o.GetRef().GetVersion()) {
				t.Fatal("accepted a payload of another version")
			}
		}
		comesBack(t, m)
	})
}

// comesBack holds that what was accepted can be sent on and is the same then.
func comesBack(t *testing.T, m proto.Message) {
	t.Helper()
	if proto.Size(m) >= MaxMessage {
		return // written less tersely than need be, it may have passed the limit
	}
	b, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := decodeAny(m, b)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(m, again) {
		t.Fatalf("%v came back as %v", m, again)
	}
}

func FuzzExpand(f *testing.F) {
	d, e := newDecoder(1), newEncoder(1, smallWindow)
	f.Fuzz(func(t *testing.T, b []byte) {
		if content, err := expand(d, b); err == nil && (len(content) > MaxMessage || len(content) > maxExpansion*(1+len(b))) {
			t.Fatalf("%d bytes became %d", len(b), len(content))
		}
		// The same bytes as what somebody has to say.
		encoded, ok := compress(e, append([]byte{encodingPlain}, b...))
		if !ok {
			return
		}
		content, err := expand(d, encoded[1:])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content, b) {
			t.Fatalf("%q came back as %q", b, content)
		}
	})
}
