package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Lengths of the two halves of a join token.
const (
	tokenIDLen     = 6
	tokenSecretLen = 16
	tokenAlphabet  = "0123456789abcdefghijklmnopqrstuvwxyz"
)

// Token lets a machine join: "id.secret", the form of kubeadm's bootstrap
// tokens. The id may be shown and logged; the secret is shown once, to who made
// it, and only its hash is kept.
type Token struct {
	ID     string
	Secret string
}

// NewToken draws a token: 82 bits of secret.
func NewToken() (Token, error) {
	id, err := draw(tokenIDLen)
	if err != nil {
		return Token{}, err
	}
	secret, err := draw(tokenSecretLen)
	return Token{ID: id, Secret: secret}, err
}

// ParseToken reads a token as people type it. The error never repeats the
// secret.
func ParseToken(text string) (Token, error) {
	id, secret, ok := strings.Cut(strings.TrimSpace(text), ".")
	if !ok || CheckTokenID(id) != nil || !drawn(secret, tokenSecretLen) {
		return Token{}, errors.New(`the token is not of the form abcdef.0123456789abcdef (6 and 16 lower case letters and digits): copy it whole from "holdfast token create"`)
	}
	return Token{ID: id, Secret: secret}, nil
}

// CheckTokenID says whether id is the first half of a token.
func CheckTokenID(id string) error {
	if !drawn(id, tokenIDLen) {
		return fmt.Errorf("token id %q: want %d lower case letters and digits", id, tokenIDLen)
	}
	return nil
}

// String is the whole token, secret and all.
func (t Token) String() string { return t.ID + "." + t.Secret }

// Hash is what is stored of the token. The secret is drawn, not chosen, so that
// one round of SHA-256 is enough; the id is in it, so that no two tokens share a
// hash.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(t.String()))
	return hex.EncodeToString(sum[:])
}

// Matches says whether hash is that of t, in constant time.
func (t Token) Matches(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(t.Hash()), []byte(hash)) == 1
}

// draw returns n characters of the alphabet, each equally likely.
func draw(n int) (string, error) {
	const fair = 256 / len(tokenAlphabet) * len(tokenAlphabet)
	out := make([]byte, 0, n)
	var b [32]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("draw a token: %w", err)
		}
		for _, c := range b {
			if int(c) >= fair {
				continue
			}
			if out = append(out, tokenAlphabet[int(c)%len(tokenAlphabet)]); len(out) == n {
				return string(out), nil
			}
		}
	}
}

func drawn(text string, n int) bool {
	return len(text) == n && strings.Trim(text, tokenAlphabet) == ""
}
