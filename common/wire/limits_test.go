package wire

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// plain is a message of fields, each of them bytes, as anybody may write it.
func plain(fields ...field) []byte { return append([]byte{encodingPlain}, fieldBytes(fields...)...) }

type field struct {
	number protowire.Number
	value  []byte
}

func fieldBytes(fields ...field) []byte {
	var b []byte
	for _, f := range fields {
		b = protowire.AppendTag(b, f.number, protowire.BytesType)
		b = protowire.AppendBytes(b, f.value)
	}
	return b
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWhatANewerPeerSaysIsIgnored: a field of a message, a body, and a field
// within a body.
func TestWhatANewerPeerSaysIsIgnored(t *testing.T) {
	ack := marshal(t, &Ack{Seq: 7})
	news := field{900, []byte("news")}
	for name, b := range map[string][]byte{
		"a field":        plain(field{3, ack}, news),
		"a field before": plain(news, field{3, ack}),
		"in the body":    plain(field{3, append(bytes.Clone(ack), fieldBytes(news)...)}),
		"several":        plain(news, field{3, ack}, news, news),
	} {
		m, err := DecodeEdge(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m.GetAck().GetSeq() != 7 {
			t.Errorf("%s: read as %v", name, m)
		}
		if n := proto.Size(m); n != 1+1+len(ack) {
			t.Errorf("%s: %d bytes of it are kept", name, n)
		}
	}
	if m, err := DecodeEdge(plain(news)); err != nil || m.GetBody() != nil {
		t.Errorf("a body of a newer peer's: %v, %v", m, err)
	}
	if m, err := DecodeHub(plain(news)); err != nil || m.GetBody() != nil {
		t.Errorf("a body of a newer hub's: %v, %v", m, err)
	}
}

func TestAMessageHasOneBody(t *testing.T) {
	ack, synced := marshal(t, &Ack{Seq: 7}), marshal(t, &Synced{Digest: make([]byte, DigestLen)})
	for name, err := range map[string]error{
		"an acknowledgement twice": func() error { _, err := DecodeEdge(plain(field{3, ack}, field{3, ack})); return err }(),
		"two bodies":               func() error { _, err := DecodeEdge(plain(field{3, ack}, field{4, nil})); return err }(),
		"synced twice":             func() error { _, err := DecodeHub(plain(field{4, synced}, field{4, synced})); return err }(),
	} {
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
}

// TestFewBytesDoNotBecomeMuchMemory: items of two bytes each would take more than
// seventy times as much.
func TestFewBytesDoNotBecomeMuchMemory(t *testing.T) {
	empty := fieldBytes(field{1, nil})
	item := fieldBytes(field{1, marshal(t, ref(Kind_KIND_POD, "a", "b", "c", "d"))})
	large := make([]byte, maxSmall+1)
	for name, b := range map[string][]byte{
		"an inventory of empty items": plain(field{2, bytes.Repeat(empty, 100_000)}),
		"a large inventory":           plain(field{2, bytes.Repeat(item, maxInventoryMessage/len(item)+1)}),
		"a large hello":               plain(field{1, large}),
		"a large acknowledgement":     plain(field{3, large}),
		"a large token ask":           plain(field{5, bytes.Repeat(fieldBytes(field{6, nil}), maxSmall)}),
		"a large certificate ask":     plain(field{6, large}),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := DecodeEdge(b)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 256<<10 {
			t.Errorf("%s: %d bytes of memory were given", name, got)
		}
	}
	// What a sender makes of SoftMessage passes.
	if _, err := DecodeEdge(plain(field{2, bytes.Repeat(item, SoftMessage/len(item)+1)})); err != nil {
		t.Errorf("an inventory of the usual size: %v", err)
	}
}

func TestFewBytesOfAReportDoNotBecomeMuchMemory(t *testing.T) {
	full := &DeviceReport{Namespace: "n", Name: "d", Uid: "u"}
	for i := range 256 {
		v := &PropertyValue{Value: "1", Metadata: map[string]string{"type": "int", "by": "meter"}, UnixMs: 1}
		full.Properties = append(full.Properties, &PropertyReport{Name: fmt.Sprint(i), Version: 1, Reported: v, Desired: v, Overridden: v, Rejected: v, History: make([]*HistoryValue, 100)})
		for h := range full.Properties[i].History {
			full.Properties[i].History[h] = &HistoryValue{Number: uint64(h), Value: "1", UnixMs: 1}
		}
	}
	b, err := proto.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	if err := DecodePayload(b, new(DeviceReport)); err != nil {
		t.Errorf("all that a device may say: %v", err)
	}
	for what, c := range map[string]struct {
		bytes string
		into  proto.Message
	}{
		"properties": {"\x42\x00", new(DeviceReport)},
		"history":    {"\x42\x04\x52\x00\x52\x00", new(DeviceReport)},
		"messages":   {"\x22\x00", new(RoutedMessages)},
	} {
		payload := bytes.Repeat([]byte(c.bytes), MaxMessage/len(c.bytes))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := DecodePayload(payload, c.into)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, ErrMalformed) || got > 1<<20 {
			t.Errorf("empty %s: %v, and %d bytes of memory were given", what, err, got)
		}
	}
}

func TestCutOffMessagesAreRefused(t *testing.T) {
	for _, m := range []proto.Message{
		&EdgeMessage{Body: &EdgeMessage_Hello{Hello: &Hello{ProtocolVersions: []uint32{1}, Digest: make([]byte, DigestLen)}}},
		&HubMessage{Body: &HubMessage_Changes{Changes: &Changes{Seq: 1, Upserts: []*Object{object(Kind_KIND_SECRET, "a", "b", "u", "p")}}}},
	} {
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		for n := range b {
			if n == 1 {
				continue // an empty message, of which nothing follows
			}
			if got, err := decodeAny(m, b[:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%d bytes of %d: got %v and %v, want ErrMalformed", n, len(b), got, err)
			}
		}
	}
}
