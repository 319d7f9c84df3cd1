package pki

import (
	"strings"
	"testing"
)

func TestTokensAreReadAsWritten(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		token, err := NewToken()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseToken("  " + token.String() + "\n")
		if err != nil || again != token {
			t.Fatalf("%s was read as %v, %v", token, again, err)
		}
		if seen[token.Secret] {
			t.Fatalf("secret %s came twice", token.Secret)
		}
		seen[token.Secret] = true
	}
}

func TestParseTokenRefusesAndKeepsTheSecret(t *testing.T) {
	for _, text := range []string{
		"", ".", "abcdef", "abcdef.", ".zyx987wvu654tsrq", "abcdef.zyx987wvu654tsr", "abcdef.zyx987wvu654tsrqp",
		"ABCDEF.zyx987wvu654tsrq", "abcdef.ZYX987wvu654tsrq", "abcde.zyx987wvu654tsrq", "abcdef.zyx987wvu654tsré",
		"abcdef.zyx987wv.654tsrq", "abcdef zyx987wvu654tsrq", "../../.zyx987wvu654tsrq",
	} {
		token, err := ParseToken(text)
		if err == nil {
			t.Errorf("%q was read as %v", text, token)
		} else if strings.Contains(strings.ToLower(err.Error()), "zyx987") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestTokenMatchesOnlyItsHash(t *testing.T) {
	a, b := Token{"abcdef", "0123456789abcdef"}, Token{"abcdeg", "0123456789abcdef"}
	if !a.Matches(a.Hash()) {
		t.Error("a token does not match its hash")
	}
	for _, hash := range []string{"", b.Hash(), a.Secret, a.Hash()[:10], strings.ToUpper(a.Hash())} {
		if a.Matches(hash) {
			t.Errorf("%s matches %q", a, hash)
		}
	}
	if strings.Contains(a.Hash(), a.Secret) {
		t.Error("the hash shows the secret")
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("abcdef.0123456789abcdef")
	f.Add(" abcdef.0123456789abcdef\n")
	f.Add("abcdef.")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if token.String() != strings.TrimSpace(text) {
			t.Errorf("%q was read as %q", text, token)
		}
		if CheckTokenID(token.ID) != nil || len(token.Secret) != tokenSecretLen {
			t.Errorf("%q gave id %q", text, token.ID)
		}
	})
}

func FuzzCheckNodeName(f *testing.F) {
	f.Add("pi-1.shop")
	f.Add("../x")
	f.Fuzz(func(t *testing.T, name string) {
		if CheckNodeName(name) == nil && (strings.ContainsAny(name, "/\x00\\ :%") || strings.Contains(name, "..") || len(name) > 253 || name != strings.ToLower(name)) {
			t.Errorf("%q passes for a name", name)
		}
	})
}

func FuzzParsePEM(f *testing.F) {
	ca, err := NewCA("fuzz")
	if err != nil {
		f.Fatal(err)
	}
	_, csrPEM, err := NewKeyAndCSR("pi-1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca.CertPEM)
	f.Add(ca.KeyPEM)
	f.Add(csrPEM)
	f.Fuzz(func(t *testing.T, text []byte) {
		if csr, err := ParseCSR(text); err == nil {
			if name, err := RequestedNode(csr); err == nil && CheckNodeName(name) != nil {
				t.Errorf("a request for %q", name)
			}
		}
		if ca, err := ParseCA(text, text); err == nil && !ca.Cert.IsCA {
			t.Error("a CA that is none")
		}
	})
}
