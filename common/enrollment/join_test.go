package enrollment_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

const token = "abcdef.0123456789abcdef"

// hub serves a handler as a hub does and counts the requests to join.
type hub struct {
	ca    *pki.CA
	addr  string
	asked atomic.Int32
}

func newHub(t *testing.T, enroll http.HandlerFunc) *hub {
	t.Helper()
	h := &hub{ca: linktest.NewCA(t)}
	mux := http.NewServeMux()
	mux.HandleFunc(enrollment.Path, func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		enroll(w, r)
	})
	h.addr = linktest.ServeHTTP(t, h.ca, mux)
	return h
}

func (h *hub) request() enrollment.Request {
	return enrollment.Request{Hub: h.addr, Token: token, CAHash: h.ca.Hash(), NodeName: "pi-1"}
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), linktest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// signing answers as the hub should, after edit had its way.
func signing(t *testing.T, ca func() *pki.CA, edit func(*enrollment.Answer)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, node, csrPEM, err := enrollment.DecodeAsk(r.Body)
		if err != nil {
			t.Errorf("the hub was asked: %v", err)
			return
		}
		cert, err := ca().SignNode(csrPEM, node, time.Hour)
		if err != nil {
			t.Errorf("sign: %v", err)
			return
		}
		answer := enrollment.Answer{Certificate: string(cert), CA: string(ca().CertPEM)}
		if edit != nil {
			edit(&answer)
		}
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func TestEnrollBringsCredentialsThatLoadAgain(t *testing.T) {
	var h *hub
	h = newHub(t, signing(t, func() *pki.CA { return h.ca }, nil))
	for name, now := range map[string]func() time.Time{
		"a right clock":      nil,
		"1970":               func() time.Time { return time.Unix(0, 0) },
		"a clock years late": func() time.Time { return time.Now().AddDate(30, 0, 0) },
	} {
		r := h.request()
		r.Now = now
		r.CAHash = strings.ToUpper(r.CAHash[:20]) + r.CAHash[20:]
		r.CAHash = "sha256:" + r.CAHash[7:]
		c, err := enrollment.Enroll(patient(t), r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		dir := filepath.Join(t.TempDir(), "edge")
		if err := c.Save(dir); err != nil {
			t.Fatal(err)
		}
		again, err := enrollment.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if again.NodeName != "pi-1" || string(again.Cert) != string(c.Cert) {
			t.Errorf("%s: loaded node %s", name, again.NodeName)
		}
		info, err := os.Stat(filepath.Join(dir, "pki", "node.key"))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: the key's mode is %v, %v", name, info.Mode(), err)
		}
	}
}

func TestEnrollRefusesAFalseHub(t *testing.T) {
	honest := newHub(t, func(http.ResponseWriter, *http.Request) { t.Error("the honest hub was asked") })
	var evil *hub
	evil = newHub(t, signing(t, func() *pki.CA { return evil.ca }, nil))
	r := honest.request()
	r.Hub = evil.addr
	_, err := enrollment.Enroll(patient(t), r)
	want := "the hub at " + evil.addr + " shows a CA with hash " + evil.ca.Hash() + ", not " + honest.ca.Hash() + ": check --ca-hash, or somebody is in between"
	if err == nil || err.Error() != want {
		t.Fatalf("%v,\nwant %s", err, want)
	}
	if n := evil.asked.Load(); n != 0 {
		t.Errorf("the false hub saw the token %d times", n)
	}
}

// TestEnrollRefusesAHubThatBorrowsTheCA: a chain can hold the honest CA without
// having been signed by it.
func TestEnrollRefusesAHubThatBorrowsTheCA(t *testing.T) {
	honest, evil := linktest.NewCA(t), linktest.NewCA(t)
	pair, err := evil.SignServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair.Certificate = [][]byte{pair.Certificate[0], honest.Cert.Raw}
	addr, asked := serveTLS(t, pair)
	for name, now := range map[string]func() time.Time{"now": nil, "1970": func() time.Time { return time.Unix(0, 0) }} {
		_, err = enrollment.Enroll(patient(t), enrollment.Request{Hub: addr, Token: token, CAHash: honest.Hash(), NodeName: "pi-1", Now: now})
		if err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("%s: %v, want an unknown authority", name, err)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the false hub was asked %d times", n)
	}
}

// serveTLS serves 404 with that certificate, and counts.
func serveTLS(t *testing.T, pair tls.Certificate) (string, *atomic.Int32) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.NotFound(w, r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return l.Addr().String(), &asked
}

func TestEnrollSaysWhatIsWrong(t *testing.T) {
	var good *hub
	good = newHub(t, signing(t, func() *pki.CA { return good.ca }, nil))
	refusing := newHub(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(enrollment.Refusal{Error: "token abcdef has expired"})
	})
	strange := newHub(t, http.NotFound)
	long := newHub(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, enrollment.MaxBody+1)) })
	garbled := newHub(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("yes")) })
	moved := newHub(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://"+good.addr+enrollment.Path, http.StatusTemporaryRedirect)
	})
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(plain)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := good.ca.SignServer([]string{"hub.example.test"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	otherName, _ := serveTLS(t, elsewhere)
	elsewhere.Certificate = elsewhere.Certificate[:1]
	noCA, _ := serveTLS(t, elsewhere)
	for name, c := range map[string]struct {
		hub  *hub
		edit func(*enrollment.Request)
		text string
	}{
		"a bad token":             {good, func(r *enrollment.Request) { r.Token = "abc" }, "not of the form"},
		"a bad hash":              {good, func(r *enrollment.Request) { r.CAHash = "sha256:12" }, "CA hash"},
		"a bad name":              {good, func(r *enrollment.Request) { r.NodeName = "Pi_1" }, "node name"},
		"a bad address":           {good, func(r *enrollment.Request) { r.Hub = "hub" }, "not HOST:PORT"},
		"nobody there":            {good, func(r *enrollment.Request) { r.Hub = closed.Addr().String() }, "cannot be reached"},
		"no TLS":                  {good, func(r *enrollment.Request) { r.Hub = plain.Addr().String() }, "does not speak TLS"},
		"no CA in the chain":      {good, func(r *enrollment.Request) { r.Hub = noCA }, "without its CA"},
		"another name":            {good, func(r *enrollment.Request) { r.Hub = otherName }, "add it to advertiseAddresses"},
		"a no":                    {refusing, nil, "refused: token abcdef has expired"},
		"no such path":            {strange, nil, "404 Not Found 404 page not found"},
		"an answer without end":   {long, nil, "more than 65536 bytes"},
		"an answer without sense": {garbled, nil, "not the JSON that is expected"},
		"somewhere else":          {moved, nil, "307"},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.hub.request()
			if c.edit != nil {
				c.edit(&r)
			}
			_, err := enrollment.Enroll(patient(t), r)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, want an error with %q", err, c.text)
			}
			if err != nil && strings.Contains(err.Error(), "0123456789abcdef") && c.text != "not of the form" {
				t.Errorf("the error shows the token: %v", err)
			}
			if errors.Is(err, enrollment.ErrRefused) != (c.hub == refusing || c.hub == strange || c.hub == moved) {
				t.Errorf("ErrRefused is %v for %v", errors.Is(err, enrollment.ErrRefused), err)
			}
		})
	}
}

func TestEnrollRefusesCertificatesOfNoUse(t *testing.T) {
	other := linktest.NewCA(t)
	foreign := func(node string) string {
		_, csr, err := pki.NewKeyAndCSR(node)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := other.SignNode(csr, node, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return string(cert)
	}
	for name, edit := range map[string]func(*enrollment.Answer){
		"another CA":     func(a *enrollment.Answer) { a.CA = string(other.CertPEM) },
		"no CA":          func(a *enrollment.Answer) { a.CA = "" },
		"no certificate": func(a *enrollment.Answer) { a.Certificate = "" },
		"another's key":  func(a *enrollment.Answer) { a.Certificate = foreign("pi-1") },
	} {
		t.Run(name, func(t *testing.T) {
			var h *hub
			h = newHub(t, signing(t, func() *pki.CA { return h.ca }, edit))
			if _, err := enrollment.Enroll(patient(t), h.request()); err == nil || !strings.Contains(err.Error(), "of no use") {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("another node's name", func(t *testing.T) {
		var h *hub
		h = newHub(t, func(w http.ResponseWriter, r *http.Request) {
			_, _, csrPEM, err := enrollment.DecodeAsk(r.Body)
			if err != nil {
				t.Errorf("the hub was asked: %v", err)
			}
			csr, err := pki.ParseCSR(csrPEM)
			if err != nil {
				t.Errorf("request: %v", err)
			}
			cert := linktest.SignClient(t, h.ca, csr.PublicKey, "system:node:pi-2", pki.NodesGroup)
			_ = json.NewEncoder(w).Encode(enrollment.Answer{
				CA:          string(h.ca.CertPEM),
				Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
			})
		})
		if _, err := enrollment.Enroll(patient(t), h.request()); err == nil || !strings.Contains(err.Error(), `for node "pi-2", not "pi-1"`) {
			t.Errorf("%v", err)
		}
	})
}

func TestEnrollEndsWithItsContext(t *testing.T) {
	entered := make(chan struct{})
	h := newHub(t, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(patient(t))
	go func() {
		<-entered
		cancel()
	}()
	if _, err := enrollment.Enroll(ctx, h.request()); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want the context's error", err)
	}
}

func TestLoadSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	if _, err := enrollment.Load(dir); !errors.Is(err, enrollment.ErrNotJoined) || !strings.Contains(err.Error(), "holdfast join") {
		t.Fatalf("an empty folder: %v", err)
	}
	ca := linktest.NewCA(t)
	credentials := func(node string) enrollment.Credentials {
		key, csr, err := pki.NewKeyAndCSR(node)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := ca.SignNode(csr, node, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return enrollment.Credentials{NodeName: node, CA: ca.CertPEM, Cert: cert, Key: key}
	}
	good := credentials("pi-1")
	for name, edit := range map[string]func(*enrollment.Credentials){
		"node.key": func(c *enrollment.Credentials) { c.Key = credentials("pi-1").Key },
		"node.crt": func(c *enrollment.Credentials) { c.Cert = []byte("x") },
		"ca.crt":   func(c *enrollment.Credentials) { c.CA = nil },
	} {
		bad, dir := good, t.TempDir()
		edit(&bad)
		if err := bad.Save(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := enrollment.Load(dir); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "pki", name)) {
			t.Errorf("a bad %s: %v", name, err)
		}
	}
	if err := good.Save(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := enrollment.Load(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "pki", "node.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := enrollment.Load(dir); !errors.Is(err, enrollment.ErrNotJoined) || errors.Is(err, fs.ErrPermission) {
		t.Fatalf("without the certificate: %v", err)
	}
}

func FuzzDecodeAsk(f *testing.F) {
	_, csr, err := pki.NewKeyAndCSR("pi-1")
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(enrollment.Ask{Token: token, CSR: string(csr)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add(`{"token":"` + token + `","csr":""}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, body string) {
		token, node, csrPEM, err := enrollment.DecodeAsk(strings.NewReader(body))
		if err != nil {
			if !errors.Is(err, enrollment.ErrMalformed) {
				t.Errorf("%v is no ErrMalformed", err)
			}
			return
		}
		if pki.CheckTokenID(token.ID) != nil || pki.CheckNodeName(node) != nil || len(csrPEM) == 0 || len(body) > enrollment.MaxBody {
			t.Errorf("%q was read as token %q, node %q", body, token.ID, node)
		}
	})
}
