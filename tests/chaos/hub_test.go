package chaos

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// hostile is a machine that stole a node's certificate, or has none.
type hostile struct {
	*scene.Scene
	hub  string
	pool *x509.CertPool
	cert tls.Certificate
}

func newHostile(s *scene.Scene, n *world.Node) *hostile {
	s.Helper()
	pki := filepath.Join(n.DataDir(), "pki")
	cert, err := tls.LoadX509KeyPair(filepath.Join(pki, "node.crt"), filepath.Join(pki, "node.key"))
	s.Must(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(scene.ReadFile(s.T, pki, "ca.crt"))) {
		s.Fatal("no CA certificate on the node")
	}
	return &hostile{Scene: s, hub: s.World.Hub(), pool: pool, cert: cert}
}

// dial connects with the stolen certificate.
func (h *hostile) dial() link.Conn {
	h.Helper()
	dialer := link.DialWebsocket(link.DialOptions{
		Hubs: []string{h.hub}, RootCAs: h.pool, Certificate: func() (tls.Certificate, error) { return h.cert, nil },
	})
	conn, err := dialer.Dial(h.Ctx)
	h.Must(err)
	return conn
}

// ends sends messages and returns the hub's last word, once it has hung up.
func (h *hostile) ends(what string, messages ...[]byte) *wire.Goodbye {
	h.Helper()
	conn := h.dial()
	defer conn.Close()
	for _, m := range messages {
		if err := conn.Send(h.Ctx, m); err != nil {
			break // it has hung up already
		}
	}
	ctx, cancel := context.WithTimeout(h.Ctx, time.Minute)
	defer cancel()
	var last *wire.Goodbye
	for {
		b, err := conn.Recv(ctx)
		if ctx.Err() != nil {
			h.Fatalf("%s: the hub has not hung up within a minute", what)
		}
		if err != nil {
			return last
		}
		m, err := wire.DecodeHub(b)
		h.Must(err)
		if g := m.GetGoodbye(); g != nil {
			last = g
		}
	}
}

func (h *hostile) encode(m *wire.EdgeMessage) []byte {
	h.Helper()
	b, err := wire.Encode(m)
	h.Must(err)
	return b
}

func hello(versions ...uint32) *wire.EdgeMessage {
	return &wire.EdgeMessage{Body: &wire.EdgeMessage_Hello{Hello: &wire.Hello{
		ProtocolVersions: versions, Digest: make([]byte, wire.DigestLen), StoreId: "stolen",
	}}}
}

// strangers knock without a certificate that the hub could know.
func (h *hostile) strangers(name string) {
	h.Run("without a certificate", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.pool, MinVersion: tls.VersionTLS13}}, Timeout: 30 * time.Second}
		answer, err := client.Get("https://" + h.hub + "/v1/link")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("status %d, want 401", answer.StatusCode)
		}
	})
	h.Run("with a certificate of another CA", func(t *testing.T) {
		// A polite client sends no certificate that the hub does not ask for.
		own := selfSigned(t, name)
		conn, err := tls.Dial("tcp", h.hub, &tls.Config{
			RootCAs: h.pool, MinVersion: tls.VersionTLS13,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil },
		})
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // TLS 1.3 tells the client at its first read
			conn.Close()
		}
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the handshake: %v, want it refused", err)
		}
	})
	h.Run("bytes that are no TLS", func(t *testing.T) {
		conn, err := net.Dial("tcp", h.hub)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(bytes.Repeat([]byte("GET / HTTP/1.0\r\n\r\n"), 100)); err != nil {
			t.Logf("it hung up early: %v", err)
		}
	})
}

// forge reports, in the stolen name, about a pod that runs on another node.
func (h *hostile) forge(pod *corev1.Pod) {
	h.Helper()
	forged := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, Status: corev1.PodStatus{Phase: corev1.PodFailed, Message: "forged"}}
	payload, err := forged.Marshal()
	if err != nil {
		h.Fatal(err)
	}
	conn := h.dial()
	defer conn.Close()
	for _, m := range []*wire.EdgeMessage{
		hello(1),
		{Body: &wire.EdgeMessage_Report{Report: &wire.Report{Id: 1, Kind: wire.ReportKind_REPORT_POD_STATUS, Payload: payload}}},
		{Body: &wire.EdgeMessage_Report{Report: &wire.Report{Id: 2, Kind: wire.ReportKind_REPORT_POD_GONE, Payload: payload}}},
	} {
		if err := conn.Send(h.Ctx, h.encode(m)); err != nil {
			h.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(h.Ctx, time.Minute)
	defer cancel()
	for answers := 0; answers < 2; {
		b, err := conn.Recv(ctx)
		if err != nil {
			h.Fatal(err)
		}
		m, err := wire.DecodeHub(b)
		if err != nil {
			h.Fatal(err)
		}
		if r := m.GetReportResult(); r != nil {
			answers++
			if r.Code != wire.ResultCode_RESULT_REJECTED {
				h.Errorf("report %d was answered %v, want REJECTED", r.Id, r.Code)
			}
		}
	}
	if after := h.Get(pod.Name); after.Status.Phase != corev1.PodRunning || after.DeletionTimestamp != nil {
		h.Errorf("a forged report reached the pod: phase %s, deleted %v", after.Status.Phase, after.DeletionTimestamp)
	}
}

func TestTheHubOutlivesWhateverComesThroughItsDoor(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	honest := s.Node("honest", world.NodeOptions{})
	victim := s.Node("victim", world.NodeOptions{})
	s.Start("before", honest, nil)
	s.Must(victim.KillEdgecore())
	h := newHostile(s, victim)

	h.strangers(honest.Name)
	for name, messages := range map[string][][]byte{
		"garbage":                    {bytes.Repeat([]byte{0xff}, 100)},
		"an empty message":           {nil},
		"a report before hello":      {h.encode(&wire.EdgeMessage{Body: &wire.EdgeMessage_Report{Report: &wire.Report{Id: 1}}})},
		"hello twice":                {h.encode(hello(1)), h.encode(hello(1))},
		"an unasked acknowledgement": {h.encode(hello(1)), h.encode(&wire.EdgeMessage{Body: &wire.EdgeMessage_Ack{Ack: &wire.Ack{Seq: 1 << 60}}})},
	} {
		t.Run(name, func(t *testing.T) {
			inner := *h
			inner.Scene = h.Within(t)
			inner.ends(name, messages...)
		})
	}
	t.Run("a message over the size limit", func(t *testing.T) {
		// Our own end of a link refuses to send it.
		dialer := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: h.pool, Certificates: []tls.Certificate{h.cert}, MinVersion: tls.VersionTLS13}}
		conn, answer, err := dialer.DialContext(s.Ctx, "wss://"+h.hub+link.Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		defer conn.Close()
		if err := conn.WriteMessage(websocket.BinaryMessage, make([]byte, wire.MaxMessage+1)); err != nil {
			t.Logf("it hung up early: %v", err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, _, err = conn.ReadMessage()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the hub has not hung up within a minute")
		}
	})
	t.Run("a protocol version nobody knows", func(t *testing.T) {
		g := h.ends("unknown version", h.encode(hello(99)))
		if g.GetReason() != wire.Goodbye_REASON_PROTOCOL_VERSION || !strings.Contains(g.GetMessage(), "1") {
			t.Errorf("the hub says %v, want a goodbye that names the versions it speaks", g)
		}
	})

	h.forge(s.Get("before"))

	// Nobody else noticed.
	s.Start("after", honest, nil)
	if p := s.Get("before"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("pod before was restarted")
	}
	s.Must(victim.StartEdgecore())
	s.Start("victim", victim, nil)
}

// TestAFlappingLineCostsNothingButTheLine drops the line again and again.
func TestAFlappingLineCostsNothingButTheLine(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("flapping", world.NodeOptions{})
	s.Start("web", n, nil)
	before := s.Running(n)["web/main"]
	for i := range 8 {
		s.Must(n.Cut())
		s.Must(n.KillConnections())
		s.Must(n.Mend())
		if i%4 == 3 {
			s.Start(fmt.Sprintf("p%d", i), n, nil)
		}
	}
	s.NodeTurns(n, corev1.ConditionTrue)
	if after := s.Running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("pod web was rebuilt: container %q, was %q", after.ID, before.ID)
	}
}

// selfSigned is a certificate that says it is the node's, from nobody's CA.
func selfSigned(t *testing.T, node string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
