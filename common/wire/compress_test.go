package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
)

type sample struct {
	name string
	msg  proto.Message
	most int // bytes it may have on the line, a little more than it had when this was written
}

// samples are what travels on an ordinary day, with how small it gets.
func (c *corpus) samples() []sample {
	p, w := c.simplePod(), c.webPod()
	cm, ca, n := c.mosquitto(), c.rootCA(), c.nodeDown()
	return []sample{
		{"pod", c.down(Kind_KIND_POD, p.Namespace, p.Name, p.UID, p), 330},
		{"pod with all sorts of things", c.down(Kind_KIND_POD, w.Namespace, w.Name, w.UID, w), 600},
		{"configmap", c.down(Kind_KIND_CONFIG_MAP, cm.Namespace, cm.Name, cm.UID, cm), 420},
		{"configmap of a certificate", c.down(Kind_KIND_CONFIG_MAP, ca.Namespace, ca.Name, ca.UID, ca), 1060},
		{"node", c.down(Kind_KIND_NODE, "", n.Name, n.UID, n), 190},
		{"node status", c.up(ReportKind_REPORT_NODE, c.nodeUp()), 310},
		{"pod status", c.up(ReportKind_REPORT_POD_STATUS, c.status(p, true)), 340},
		{"pod status, web", c.up(ReportKind_REPORT_POD_STATUS, c.status(w, true)), 400},
		{"pod status, crashing", c.up(ReportKind_REPORT_POD_STATUS, c.status(w, false)), 520},
		{"event", c.up(ReportKind_REPORT_EVENT, c.event(w, "Normal", "Pulled", "Container image \"example.test/kiosk/price-display:1\" already present on machine")), 240},
		{"event of a probe", c.up(ReportKind_REPORT_EVENT, c.event(w, "Warning", "Unhealthy",
			"Readiness probe failed: Get \"http://10.85.0.17:8080/readyz\": dial tcp 10.85.0.17:8080: connect: connection refused")), 260},
		{"token", &HubMessage{Body: &HubMessage_TokenAnswer{TokenAnswer: &TokenAnswer{Id: 5, Code: ResultCode_RESULT_ACCEPTED, Token: c.token(w),
			ExpiresUnix: 1773483999, HubTimeUnixMs: 1773480392123}}}, 560},
	}
}

func decodeAny(m proto.Message, b []byte) (proto.Message, error) {
	if _, up := m.(*EdgeMessage); up {
		return DecodeEdge(b)
	}
	return DecodeHub(b)
}

func TestWhatTravelsIsSmall(t *testing.T) {
	plain, encoded := 0, 0
	for _, s := range newCorpus(t).samples() {
		b, err := Encode(s.msg)
		if err != nil {
			t.Fatal(s.name, err)
		}
		got, err := decodeAny(s.msg, b)
		if err != nil {
			t.Fatal(s.name, err)
		}
		if !proto.Equal(got, s.msg) {
			t.Errorf("%s: came back as %v, was %v", s.name, got, s.msg)
		}
		size := proto.Size(s.msg)
		t.Logf("%-30s %5d -> %5d", s.name, size, len(b))
		if len(b) > s.most {
			t.Errorf("%s: %d bytes on the line, want at most %d", s.name, len(b), s.most)
		}
		plain, encoded = plain+size, encoded+len(b)
	}
	t.Logf("%-30s %5d -> %5d", "all", plain, encoded)
}

func TestTheDictionaryNeverChanges(t *testing.T) {
	sum := sha256.Sum256(dictionary)
	const want = "e37c705750798b152179162ddba9e2ace7d8f871c19dd9154d940402c698b552"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Fatalf("dictionary %d has the SHA-256 %s, want %s: peers of other versions could not read what it encodes; give another dictionary another id", dictionaryID, got, want)
	}
}

// TestSecretsAreNotCompressed, nor what travels with them: how long a message is
// must say nothing of what is secret in it.
func TestSecretsAreNotCompressed(t *testing.T) {
	guess := strings.Repeat("the same text again and again ", 100)
	length := func(m proto.Message) int {
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	changes := func(o ...*Object) *HubMessage {
		return &HubMessage{Body: &HubMessage_Changes{Changes: &Changes{Upserts: o}}}
	}
	secret, config := object(Kind_KIND_SECRET, "a", "b", "u", guess), object(Kind_KIND_CONFIG_MAP, "a", "b", "v", guess)
	for name, m := range map[string]proto.Message{
		"a secret":                 changes(secret),
		"a secret and a configmap": changes(config, secret),
		"a token":                  &HubMessage{Body: &HubMessage_TokenAnswer{TokenAnswer: &TokenAnswer{Token: guess}}},
	} {
		if got, want := length(m), proto.Size(m)+1; got != want {
			t.Errorf("%s: %d bytes on the line, want all %d", name, got, want)
		}
	}
	if m := changes(config); length(m) > proto.Size(m)/5 {
		t.Errorf("a configmap by itself: %d bytes on the line of %d", length(m), proto.Size(m))
	}
}

func TestEverySizeAndContentComesBack(t *testing.T) {
	rnd := rand.New(rand.NewSource(7))
	for _, size := range []int{0, 1, 90, 100, 127, 128, 129, 255, 256, 1023, 1024, 1025, 65535, 65536, 65537, window - 1, window + 1, 1 << 20, 3 << 20} {
		noise := make([]byte, size)
		rnd.Read(noise)
		half := bytes.Clone(noise)
		for i := size / 2; i < size; i++ {
			half[i] = "abcd"[i%4]
		}
		for name, payload := range map[string][]byte{"noise": noise, "half of it noise": half, "zeros": make([]byte, size)} {
			m := &EdgeMessage{Body: &EdgeMessage_Report{Report: &Report{Id: 1, Payload: payload}}}
			b, err := Encode(m)
			if err != nil {
				t.Fatal(name, size, err)
			}
			if len(b) > 1+proto.Size(m) {
				t.Errorf("%s, %d: %d bytes on the line of %d", name, size, len(b), proto.Size(m))
			}
			got, err := DecodeEdge(b)
			if err != nil {
				t.Fatal(name, size, err)
			}
			if !bytes.Equal(got.GetReport().GetPayload(), payload) {
				t.Errorf("%s, %d: came back as something else", name, size)
			}
		}
	}
}

// frame compresses with options of the caller's.
func frame(t *testing.T, content []byte, options ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithSingleSegment(true), zstd.WithWindowSize(window)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(content, nil)
}

func TestBadFramesAreRefused(t *testing.T) {
	content, err := proto.Marshal(&EdgeMessage{Body: &EdgeMessage_Report{Report: &Report{Id: 1, Payload: bytes.Repeat([]byte("status "), 20)}}})
	if err != nil {
		t.Fatal(err)
	}
	good := frame(t, content)
	streamed := func() []byte {
		var b bytes.Buffer
		e, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range [][]byte{content[:20], content[20:]} { // a size is not stated
			if _, err := e.Write(part); err != nil {
				t.Fatal(err)
			}
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 0x40
	bad := map[string][]byte{
		"no encoding":              {},
		"unknown encoding":         append([]byte{2}, content...),
		"a message of old":         content,
		"no frame":                 {encodingZstd},
		"no magic":                 append([]byte{encodingZstd}, content...),
		"trailing garbage":         append(append([]byte{encodingZstd}, good...), "garbage"...),
		"two frames":               append(append([]byte{encodingZstd}, good...), good...),
		"a skippable frame after":  append(append([]byte{encodingZstd}, good...), 0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9),
		"a skippable frame alone":  {encodingZstd, 0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9},
		"a skippable frame before": append([]byte{encodingZstd, 0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9}, good...),
		"unknown dictionary":       append([]byte{encodingZstd}, frame(t, content, zstd.WithEncoderDictRaw(2, dictionary))...),
		"wrong dictionary":         append([]byte{encodingZstd}, frame(t, content, zstd.WithEncoderDictRaw(dictionaryID, bytes.Repeat([]byte("status stat"), 700)))...),
		"no stated size":           append([]byte{encodingZstd}, streamed...),
		"a changed byte":           append([]byte{encodingZstd}, flipped...), // its checksum tells
	}
	for i := range good {
		bad["cut off at "+string(rune('A'+i%26))+hex.EncodeToString([]byte{byte(i)})] = append([]byte{encodingZstd}, good[:i]...)
	}
	for name, b := range bad {
		if m, err := DecodeEdge(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v and %v, want ErrMalformed", name, m, err)
		}
	}
	if _, err := DecodeEdge(append([]byte{encodingZstd}, good...)); err != nil {
		t.Errorf("the frame that the others were made of: %v", err)
	}
}

// TestAZipBombGetsNoMemory: neither what states how large it becomes nor what
// lies about it.
func TestAZipBombGetsNoMemory(t *testing.T) {
	zeros := frame(t, make([]byte, 64<<20))
	lying := bytes.Clone(zeros) // magic, descriptor, four bytes of size
	copy(lying[5:9], []byte{0, 1, 0, 0})
	allowed := frame(t, make([]byte, MaxMessage))
	for name, b := range map[string][]byte{"64 MiB": zeros, "64 MiB as 256 bytes": lying, "4 MiB": allowed} {
		b = append([]byte{encodingZstd}, b...)
		if _, err := DecodeEdge(b); !errors.Is(err, ErrMalformed) { // and the decoder is made
			t.Fatalf("%s: got %v, want ErrMalformed", name, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 10 {
			if _, err := DecodeEdge(b); err == nil {
				t.Fatalf("%s: accepted", name)
			}
		}
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / 10; got > 64<<10 {
			t.Errorf("%s, %d bytes on the line: %d bytes of memory were given for each", name, len(b), got)
		}
	}
}

func TestTheCodersTakeLittleMemory(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	payload := make([]byte, 1<<20)
	rand.New(rand.NewSource(1)).Read(payload)
	copy(payload, bytes.Repeat([]byte("something to find "), 30000))
	before := heap()
	e, d := newEncoder(1, smallWindow), newDecoder(1)
	for _, n := range []int{200, 5000, large, len(payload)} {
		if _, err := expand(d, e.EncodeAll(payload[:n], nil)); err != nil && !errors.Is(err, errExpansion) {
			t.Fatal(err)
		}
	}
	got := heap() - before
	runtime.KeepAlive(e)
	runtime.KeepAlive(d)
	runtime.KeepAlive(payload)
	t.Logf("an encoder and a decoder take %d KiB", got>>10)
	if got > 1<<20 {
		t.Errorf("an encoder and a decoder take %d bytes, want at most 1 MiB", got)
	}
}

func BenchmarkEncodePod(b *testing.B) {
	m := newCorpus(nil).samples()[0].msg
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodePod(b *testing.B) {
	encoded, err := Encode(newCorpus(nil).samples()[0].msg)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeHub(encoded); err != nil {
			b.Fatal(err)
		}
	}
}
