package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Service account tokens are most of what an idle node receives: each pod asks for
// one every 48 minutes. A token is a JWT (RFC 7515): a header and claims, which are
// no secret by themselves, and a signature, which is. Packed, the header and the
// claims are compressed and the signature is what it is in bytes, so that the
// secret takes part in no compression.
//
// Packed: how header and claims are encoded (encodingPlain, encodingZstd), the
// length of that as a varint, header and claims with a zero byte between them,
// signature.

// packToken returns nil for a token that is no JWT in its usual form.
func packToken(token string) []byte {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	var raw [3][]byte
	for i, part := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || i < 2 && bytes.IndexByte(b, 0) >= 0 || base64.RawURLEncoding.EncodeToString(b) != part {
			return nil
		}
		raw[i] = b
	}
	open := append([]byte{encodingPlain}, raw[0]...)
	open = append(append(open, 0), raw[1]...)
	if encoded, ok := compress(compressDown(), open); ok {
		open = encoded
	}
	packed := append(make([]byte, 0, len(token)), open[0])
	packed = binary.AppendUvarint(packed, uint64(len(open)-1))
	packed = append(append(packed, open[1:]...), raw[2]...)
	if len(packed) >= len(token) {
		return nil
	}
	return packed
}

// unpackToken undoes packToken.
func unpackToken(packed []byte) (string, error) {
	if len(packed) == 0 {
		return "", errors.New("it is empty")
	}
	size, n := binary.Uvarint(packed[1:])
	if n <= 0 || size > uint64(len(packed)-1-n) {
		return "", errors.New("it is cut off")
	}
	rest := packed[1+n:]
	open, err := content(append([]byte{packed[0]}, rest[:size]...), expandDown)
	if err != nil {
		return "", err
	}
	header, claims, ok := bytes.Cut(open, []byte{0})
	if !ok {
		return "", errors.New("it has no claims")
	}
	text := base64.RawURLEncoding.EncodeToString
	return text(header) + "." + text(claims) + "." + text(rest[size:]), nil
}

// packed is m as it travels: a token in fewer bytes.
func (m *HubMessage) packed() *HubMessage {
	answer := m.GetTokenAnswer()
	if answer.GetToken() == "" {
		return m
	}
	p := packToken(answer.GetToken())
	if p == nil {
		return m
	}
	return &HubMessage{Body: &HubMessage_TokenAnswer{TokenAnswer: &TokenAnswer{
		Id: answer.GetId(), Code: answer.GetCode(), Message: answer.GetMessage(), Packed: p,
		ExpiresUnix: answer.GetExpiresUnix(), HubTimeUnixMs: answer.GetHubTimeUnixMs(),
	}}}
}

// unpack puts the token back where readers look for it.
func (x *TokenAnswer) unpack() error {
	if x.GetPacked() == nil {
		return nil
	}
	if x.Token != "" {
		return fmt.Errorf("%w: token answer %d: two tokens", ErrMalformed, x.GetId())
	}
	token, err := unpackToken(x.Packed)
	if err != nil {
		return fmt.Errorf("%w: token answer %d: %w", ErrMalformed, x.GetId(), err)
	}
	x.Token, x.Packed = token, nil
	return nil
}
