package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// ends is when the node's certificate ends.
func ends(s *scene.Scene, n *world.Node) time.Time {
	s.Helper()
	cert, err := pki.ParseCert([]byte(scene.ReadFile(s.T, filepath.Join(n.DataDir(), "pki", "node.crt"))))
	s.Must(err)
	return cert.NotAfter
}

func connected(l localstatus.Line) bool { return l.Connected }

// TestACertificateIsRenewedInTimeAndAfterItsEnd: with certificates of seconds, a
// node gets a new one before the end of the old, and also when it was away until
// long after. Its pods notice nothing.
func TestACertificateIsRenewedInTimeAndAfterItsEnd(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	hub, err := s.World.AddHub(s.Ctx, "nodeCertificateTTL: 45s")
	s.Must(err)
	n := s.Node("renewing", world.NodeOptions{Hubs: []string{hub.Address}})
	s.Start("web", n, nil)
	before := s.Running(n)["web/main"].ID

	first := ends(s, n)
	s.Until("the certificate is due", func(context.Context) (bool, error) { return time.Until(first) < 45*time.Second/3, nil })
	s.Must(n.KillConnections()) // a session asks when it begins, and every hour
	s.Until("a new certificate comes in a session", func(context.Context) (bool, error) { return ends(s, n).After(first), nil })
	line(s, n, "connected with the new certificate", connected)

	s.Must(n.Cut())
	s.Until("the certificate has ended", func(context.Context) (bool, error) { return time.Now().After(ends(s, n)), nil })
	s.Must(n.KillConnections())
	last := ends(s, n)
	s.Must(n.Mend())
	s.Until("the ended certificate is renewed by proof of its key", func(context.Context) (bool, error) { return ends(s, n).After(last), nil })
	line(s, n, "connected again", connected)
	s.Start("new", n, nil)
	if now := s.Running(n)["web/main"].ID; now != before {
		t.Errorf("container web/main is %q, was %q", now, before)
	}
}

// TestARevokedNodeIsOut: at once, for good, and alone; what it runs goes on.
func TestARevokedNodeIsOut(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	_, err := s.Client.CoreV1().Secrets(s.NS).Create(s.Ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "till-key"}}, metav1.CreateOptions{})
	s.Must(err)
	stolen, other := s.Node("stolen", world.NodeOptions{}), s.Node("not-stolen", world.NodeOptions{})
	s.Start("web", stolen, func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "key", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "till-key"}}}}
	})
	out, err := s.World.Admin("node", "revoke", "stolen")
	s.Must(err)
	if !strings.Contains(out, "till-key") {
		t.Errorf("it does not name the Secret that the node could read:\n%s", out)
	}
	line(s, stolen, "is told that it is revoked", func(l localstatus.Line) bool {
		return !l.Connected && strings.Contains(l.LastError, "revoked")
	})
	s.NodeTurns(stolen, corev1.ConditionUnknown)
	if _, there := s.Running(stolen)["web/main"]; !there {
		t.Error("the pod does not run any more")
	}
	line(s, other, "is connected", connected)
	if out, err := s.World.Admin("node", "list"); err != nil || !strings.Contains(out, "stolen") {
		t.Errorf("node list: %v:\n%s", err, out)
	}
}
