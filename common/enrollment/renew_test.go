package enrollment_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/pki"
)

func TestAProofNeedsAConnection(t *testing.T) {
	key, csr, err := pki.NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	k, err := pki.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enrollment.Prove(k, nil, csr); err == nil {
		t.Error("a proof that is bound to nothing")
	}
}

func FuzzDecodeRenew(f *testing.F) {
	ca, err := pki.NewCA("fuzz")
	if err != nil {
		f.Fatal(err)
	}
	_, csr, err := pki.NewKeyAndCSR("pi-1")
	if err != nil {
		f.Fatal(err)
	}
	cert, err := ca.SignNode(csr, "pi-1", time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(enrollment.RenewAsk{Certificate: string(cert), CSR: string(csr), Proof: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add(strings.Replace(string(good), `"proof":"eA=="`, `"proof":null`, 1))
	f.Add(`{"certificate":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n","csr":"","proof":"eA=="}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, body string) {
		r, err := enrollment.DecodeRenew(strings.NewReader(body))
		if err != nil {
			if !errors.Is(err, enrollment.ErrMalformed) {
				t.Errorf("%v is no ErrMalformed", err)
			}
			return
		}
		if r.Old == nil || pki.CheckNodeName(r.Node) != nil || len(r.Proof) == 0 || len(r.Proof) > 80 || len(body) > enrollment.MaxBody {
			t.Errorf("%q was read as %+v", body, r)
		}
		if r.Check(nil) == nil {
			t.Error("a proof that is bound to nothing is good")
		}
	})
}
