package wire

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func answer(token string) *HubMessage {
	return &HubMessage{Body: &HubMessage_TokenAnswer{TokenAnswer: &TokenAnswer{Id: 9, Code: ResultCode_RESULT_ACCEPTED, Token: token, ExpiresUnix: 7, HubTimeUnixMs: 8}}}
}

// TestEveryTokenComesBackToTheLetter, whether or not it is one that can be packed.
func TestEveryTokenComesBackToTheLetter(t *testing.T) {
	c := newCorpus(t)
	text := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	good := c.token(c.simplePod())
	for name, token := range map[string]string{
		"an apiserver's":       good,
		"none":                 "",
		"not a JWT":            "0123456789abcdef",
		"two parts":            text("{}") + "." + text("{}"),
		"four parts":           good + "." + text("x"),
		"empty parts":          "..",
		"no signature":         strings.TrimRight(good, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
		"a zero in the header": text("{\x00}") + "." + text(strings.Repeat("claims ", 30)) + "." + text("signature"),
		"a zero in the claims": text("{}") + "." + text("{\x00}"+strings.Repeat("claims ", 30)) + "." + text("signature"),
		"zeros to sign":        text("{}") + "." + text(strings.Repeat("claims ", 30)) + "." + text("\x00\x00\x00"),
		"padding":              good + "==",
		"another alphabet":     good[:len(good)-4] + "+/+/",
		"bits left over":       good[:len(good)-1] + "B",
		"a line break":         good[:20] + "\n" + good[20:],
		"short claims":         text("{}") + "." + text("{}") + "." + text("s"),
		"large claims":         text("{}") + "." + text(strings.Repeat("many words of a claim ", 9000)) + "." + text("signature"),
	} {
		b, err := Encode(answer(token))
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := DecodeHub(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if a := got.GetTokenAnswer(); a.GetToken() != token || a.GetPacked() != nil || a.GetId() != 9 || a.GetCode() != ResultCode_RESULT_ACCEPTED || a.GetExpiresUnix() != 7 || a.GetHubTimeUnixMs() != 8 {
			t.Errorf("%s: came back as %v", name, a)
		}
	}
}

// TestASignatureIsNotCompressed, nor does what it is change how long the message is.
func TestASignatureIsNotCompressed(t *testing.T) {
	c := newCorpus(t)
	token := c.token(c.simplePod())
	i := strings.LastIndex(token, ".") + 1
	claims := token[:i-1]
	length := func(signature string) int {
		b, err := Encode(answer(claims + "." + base64.RawURLEncoding.EncodeToString([]byte(signature))))
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	random := make([]byte, 256)
	c.rnd.Read(random)
	want := length(string(random))
	for name, signature := range map[string]string{
		"all alike":         strings.Repeat("A", 256),
		"like the claims":   (claims + claims)[:256],
		"like the claims 2": `"kubernetes.io":{"namespace":"default","node":{"name":"shop-42"` + strings.Repeat(" ", 256-63),
	} {
		if got := length(signature[:256]); got != want {
			t.Errorf("%s: %d bytes on the line, a random one %d", name, got, want)
		}
	}
}

func TestBadPackedTokensAreRefused(t *testing.T) {
	c := newCorpus(t)
	packed := packToken(c.token(c.simplePod()))
	for name, p := range map[string][]byte{
		"encoding alone":   packed[:1],
		"cut off":          packed[:100],
		"unknown encoding": append([]byte{9}, packed[1:]...),
		"long length":      {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"no claims":        {0, 2, '{', '}', 's'},
	} {
		m := &HubMessage{Body: &HubMessage_TokenAnswer{TokenAnswer: &TokenAnswer{Packed: p}}}
		if got, err := DecodeHub(append([]byte{encodingPlain}, marshal(t, m)...)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v and %v, want ErrMalformed", name, got, err)
		}
	}
	both := &HubMessage{Body: &HubMessage_TokenAnswer{TokenAnswer: &TokenAnswer{Token: "x", Packed: packed}}}
	if _, err := DecodeHub(append([]byte{encodingPlain}, marshal(t, both)...)); !errors.Is(err, ErrMalformed) {
		t.Errorf("two tokens: %v, want ErrMalformed", err)
	}
}
