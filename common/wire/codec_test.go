package wire

import (
	"bytes"
	"errors"
	"math/rand"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

func ref(kind Kind, ns, name, uid, payload string) *ObjectRef {
	return &ObjectRef{Kind: kind, Namespace: ns, Name: name, Uid: uid, Version: Version([]byte(payload))}
}

func object(kind Kind, ns, name, uid, payload string) *Object {
	return &Object{Ref: ref(kind, ns, name, uid, payload), Payload: []byte(payload)}
}

func TestMessagesSurviveTheCodec(t *testing.T) {
	down := &HubMessage{Body: &HubMessage_Changes{Changes: &Changes{
		Seq:     7,
		Upserts: []*Object{object(Kind_KIND_POD, "shop", "till", "u1", "spec")},
		Deletes: []*ObjectRef{{Kind: Kind_KIND_SECRET, Namespace: "shop", Name: "old", Uid: "u2"}},
	}}}
	b, err := Encode(down)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeHub(b)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, down) {
		t.Fatalf("got %v, want %v", got, down)
	}
}

func TestDecodingRefusesWhatMustNotReachTheStore(t *testing.T) {
	long := strings.Repeat("x", 300)
	bad := map[string]*Changes{
		"no reference":     {Upserts: []*Object{{Payload: []byte("x")}}},
		"unknown kind":     {Upserts: []*Object{object(Kind(99), "ns", "n", "u", "p")}},
		"no name":          {Upserts: []*Object{object(Kind_KIND_POD, "ns", "", "u", "p")}},
		"long name":        {Upserts: []*Object{object(Kind_KIND_POD, "ns", long, "u", "p")}},
		"path in name":     {Upserts: []*Object{object(Kind_KIND_POD, "ns", "../etc", "u", "p")}},
		"path in ns":       {Upserts: []*Object{object(Kind_KIND_POD, "..", "n", "u", "p")}},
		"no uid":           {Upserts: []*Object{object(Kind_KIND_POD, "ns", "n", "", "p")}},
		"path in uid":      {Upserts: []*Object{object(Kind_KIND_POD, "ns", "n", "../../x", "p")}},
		"dots as uid":      {Deletes: []*ObjectRef{{Kind: Kind_KIND_POD, Namespace: "ns", Name: "n", Uid: ".."}}},
		"wrong version":    {Upserts: []*Object{{Ref: ref(Kind_KIND_POD, "ns", "n", "u", "other"), Payload: []byte("p")}}},
		"short version":    {Upserts: []*Object{{Ref: &ObjectRef{Kind: Kind_KIND_POD, Namespace: "ns", Name: "n", Uid: "u", Version: []byte{1}}, Payload: []byte("p")}}},
		"delete, no uid":   {Deletes: []*ObjectRef{{Kind: Kind_KIND_POD, Namespace: "ns", Name: "n"}}},
		"delete, bad kind": {Deletes: []*ObjectRef{{Namespace: "ns", Name: "n", Uid: "u"}}},
	}
	for name, c := range bad {
		b, err := Encode(&HubMessage{Body: &HubMessage_Changes{Changes: c}})
		if err != nil {
			t.Fatal(name, err)
		}
		if _, err := DecodeHub(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
	if _, err := DecodeEdge([]byte{0xff, 0xff, 0xff}); !errors.Is(err, ErrMalformed) {
		t.Errorf("garbage: got %v, want ErrMalformed", err)
	}
	if _, err := DecodeEdge(make([]byte, MaxMessage+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("oversized: got %v, want ErrMalformed", err)
	}
	hello, err := Encode(&EdgeMessage{Body: &EdgeMessage_Hello{Hello: &Hello{Digest: []byte("short")}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeEdge(hello); !errors.Is(err, ErrMalformed) {
		t.Errorf("short digest: got %v, want ErrMalformed", err)
	}
}

func TestEncodeRefusesMoreThanTheOtherSideAccepts(t *testing.T) {
	big := &HubMessage{Body: &HubMessage_Goodbye{Goodbye: &Goodbye{Message: strings.Repeat("x", MaxMessage)}}}
	if _, err := Encode(big); err == nil {
		t.Fatal("encoded a message over the limit")
	}
}

func TestDigestIsOfTheSetAndOfNothingElse(t *testing.T) {
	refs := []*ObjectRef{
		ref(Kind_KIND_POD, "a", "b", "u1", "1"), ref(Kind_KIND_POD, "a", "c", "u2", "2"),
		ref(Kind_KIND_SECRET, "a", "b", "u3", "3"), ref(Kind_KIND_NODE, "", "n", "u4", "4"),
	}
	want := Digest(refs)
	rnd := rand.New(rand.NewSource(1))
	for range 20 {
		rnd.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] })
		if !bytes.Equal(Digest(refs), want) {
			t.Fatal("the digest depends on the order")
		}
	}
	// Every field of every reference matters, and neighbours do not run together.
	seen := map[string]string{string(want): "the set"}
	differ := func(name string, refs []*ObjectRef) {
		t.Helper()
		d := string(Digest(refs))
		if other, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[d] = name
	}
	differ("nothing", nil)
	differ("one less", refs[1:])
	differ("ab/c", []*ObjectRef{ref(Kind_KIND_POD, "ab", "c", "u", "p")})
	differ("a/bc", []*ObjectRef{ref(Kind_KIND_POD, "a", "bc", "u", "p")})
	differ("another kind", []*ObjectRef{ref(Kind_KIND_SECRET, "a", "bc", "u", "p")})
	differ("another uid", []*ObjectRef{ref(Kind_KIND_POD, "a", "bc", "v", "p")})
	differ("another version", []*ObjectRef{ref(Kind_KIND_POD, "a", "bc", "u", "q")})
}
