// Package enrollment is a machine's half of joining: with a token and the hash
// of the hub's CA it gets the node a certificate, and it keeps that certificate,
// its key and the CA in the edge's data folder. common/adm joins with it,
// edgecore loads with it; cloud/enroll answers it with the same messages. It
// never trusts a hub by any other sign than the CA's hash, and never talks to a
// cluster (enrollment/cluster does).
package enrollment

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// Path is where the hub takes requests to join.
const Path = "/v1/enroll"

// MaxBody is the most that either side reads of the other's message, in bytes.
const MaxBody = 64 << 10

// Ask is what a joining machine posts, as JSON. The name that it wants is the
// common name of the certificate request.
type Ask struct {
	Token string `json:"token"`
	CSR   string `json:"csr"` // PEM
}

// Answer is the hub's yes.
type Answer struct {
	Certificate string `json:"certificate"` // PEM
	CA          string `json:"ca"`          // PEM
}

// Refusal is the hub's no, in words for people.
type Refusal struct {
	Error string `json:"error"`
}

// ErrMalformed is in every error of a decoder.
var ErrMalformed = errors.New("malformed request")

// DecodeAsk reads what a machine posted, and checks it as far as that needs no
// cluster: the token's form, and a request that is signed with its own key and
// names a node. It reads at most MaxBody bytes.
func DecodeAsk(r io.Reader) (token pki.Token, node string, csrPEM []byte, err error) {
	var ask Ask
	if err := decode(r, &ask); err != nil {
		return pki.Token{}, "", nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if token, err = pki.ParseToken(ask.Token); err != nil {
		return pki.Token{}, "", nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	csr, err := pki.ParseCSR([]byte(ask.CSR))
	if err != nil {
		return pki.Token{}, "", nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if node, err = pki.RequestedNode(csr); err != nil {
		return pki.Token{}, "", nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return token, node, []byte(ask.CSR), nil
}

// decode reads one JSON value and nothing after it.
func decode(r io.Reader, into any) error {
	body, err := io.ReadAll(io.LimitReader(r, MaxBody+1))
	if err != nil {
		return err
	}
	if len(body) > MaxBody {
		return fmt.Errorf("more than %d bytes", MaxBody)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("not the JSON that is expected: %w", err)
	}
	return nil
}
