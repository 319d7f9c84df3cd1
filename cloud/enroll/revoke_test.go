package enroll_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/enroll"
	"github.com/holdfast-edge/holdfast/common/adm"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/pki"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// until waits for what must come.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx := patient(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("it does not happen: %s", what)
		case <-tick.C:
		}
	}
}

// revoke is `holdfast node revoke`.
func (p *place) revoke(t *testing.T, node string, o adm.RevokeOptions) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := (&adm.App{Out: &out}).NodeRevoke(patient(t), adm.CloudOptions{Kubeconfig: p.kubeconfig}, node, o)
	return out.String(), err
}

func (p *place) revocation(t *testing.T) {
	const node = "stolen"
	p.node(t, node, true, false)
	p.node(t, "kubelet", false, false)
	p.pod(t, node)
	mine, err := p.join(t, p.token(t, 0), node)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.connect(t, mine); err != nil {
		t.Fatal(err)
	}
	for name, word := range map[string]string{"mistyped": "--force", "kubelet": "no edge node"} {
		if _, err := p.revoke(t, name, adm.RevokeOptions{}); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("node %s: %v", name, err)
		}
	}
	out, err := p.revoke(t, node, adm.RevokeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"Node stolen is revoked", "secret default/db-password", "secret default/pull", "secret default/certs", "secret default/projected", "secret default/all-env", "serviceaccount default/clerk", "Its 1 pods stay bound", "--delete"} {
		if !strings.Contains(out, part) {
			t.Errorf("it does not say %q:\n%s", part, out)
		}
	}
	if strings.Contains(out, "no-secret") {
		t.Errorf("what is no Secret is listed:\n%s", out)
	}
	until(t, "the hub hears of it", func() bool { _, heard := p.revoked.Load(node); return heard })
	if _, err := p.connect(t, mine); !errors.Is(err, link.ErrRefused) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked node connects: %v", err)
	}
	if _, err := enrollment.Renew(patient(t), enrollment.RenewRequest{Hub: p.addr, Present: mine}); !errors.Is(err, enrollment.ErrRefused) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked certificate is renewed: %v", err)
	}
	cert, err := pki.ParseCert(mine.Cert)
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := pki.NewKeyAndCSR(node)
	if err != nil {
		t.Fatal(err)
	}
	h := enroll.New(enroll.Options{Client: p.client, CA: p.self.CA()})
	if a := h.Renew(patient(t), node, pki.IssuedAt(cert), csr); a.GetCode() != wire.ResultCode_RESULT_REJECTED || len(a.GetCertificate()) > 0 {
		t.Errorf("in its session: %+v", a)
	}
	if err := p.revocations.Admit("another", time.Now().Add(-time.Hour)); err != nil {
		t.Errorf("another node: %v", err)
	}

	// Who joins anew at once is in, and stays in when its certificate is renewed.
	again, err := p.join(t, p.token(t, 0), node)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.connect(t, again); err != nil {
		t.Errorf("joined anew: %v", err)
	}
	renewed, err := enrollment.Renew(patient(t), enrollment.RenewRequest{Hub: p.port(t, enroll.New(enroll.Options{Client: p.client, CA: p.self.CA()})), Present: again})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.connect(t, renewed); err != nil {
		t.Errorf("joined anew and renewed: %v", err)
	}
	if _, err := p.connect(t, mine); err == nil {
		t.Error("the stolen certificate is good again")
	}

	// Once more, with the Node.
	first, _ := p.revoked.Load(node)
	if out, err = p.revoke(t, node, adm.RevokeOptions{Delete: true}); err != nil || !strings.Contains(out, "The Node is deleted") {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := p.client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Node is there: %v", err)
	}
	if _, err := p.revoke(t, node, adm.RevokeOptions{}); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("a node that is gone: %v", err)
	}
	if _, err := p.revoke(t, node, adm.RevokeOptions{Force: true, Delete: true}); err != nil {
		t.Errorf("a node that is gone, all the same: %v", err)
	}
	until(t, "the hub hears of the later one", func() bool {
		last, _ := p.revoked.Load(node)
		return last.(time.Time).After(first.(time.Time)) && p.revocations.Admit(node, pki.IssuedAt(cert)) != nil
	})
	var list bytes.Buffer
	if err := (&adm.App{Out: &list}).NodeList(patient(t), adm.CloudOptions{Kubeconfig: p.kubeconfig}); err != nil || !strings.Contains(list.String(), "stolen") || !strings.Contains(list.String(), "no Node") || strings.Contains(list.String(), "kubelet") {
		t.Errorf("the list: %v\n%s", err, list.String())
	}
}

// pod makes a pod on the node that refers to Secrets in many ways.
func (p *place) pod(t *testing.T, node string) {
	t.Helper()
	if _, err := p.client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "clerk"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	named := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	_, err := p.client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "shop"},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "clerk", ImagePullSecrets: []corev1.LocalObjectReference{named("pull")},
			Containers: []corev1.Container{{
				Name: "main", Image: "example.test/shop:1",
				Env: []corev1.EnvVar{
					{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: named("db-password"), Key: "p"}}},
					{Name: "B", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: named("no-secret"), Key: "p"}}},
				},
				EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: named("all-env")}}, {ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: named("no-secret")}}},
			}},
			Volumes: []corev1.Volume{
				{Name: "certs", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "certs"}}},
				{Name: "no-secret-either", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named("no-secret")}}},
				{Name: "many", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{LocalObjectReference: named("projected")}}}}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (p *place) failClosed(t *testing.T) {
	blind := enroll.NewRevocations(enroll.RevocationsOptions{Client: p.client, FirstRead: time.Nanosecond})
	if err := blind.Admit("pi-1", time.Now()); err == nil || !strings.Contains(err.Error(), "not read yet") {
		t.Errorf("by a hub that has read nothing: %v", err)
	}
	r := enroll.NewRevocations(enroll.RevocationsOptions{Client: p.client})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	until(t, "a hub that has read the list admits nodes", func() bool { return r.Admit("pi-1", time.Now()) == nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := r.Admit("stolen", time.Now().Add(-time.Hour)); err == nil {
		t.Error("a revoked node is admitted while the list is not followed any more")
	}
}

func (p *place) forgetting(t *testing.T) {
	before, err := cluster.Revoke(patient(t), p.client, "long-ago")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the hub hears of it", func() bool { _, heard := p.revoked.Load("long-ago"); return heard })
	// Run cleans at once, and then by the hour: at the time of this hub's clock.
	run := func(now time.Time) {
		t.Helper()
		r := enroll.NewRevocations(enroll.RevocationsOptions{Client: p.client, Now: func() time.Time { return now }})
		h := enroll.New(enroll.Options{Client: p.client, CA: p.self.CA(), Revocations: r, Now: func() time.Time { return now }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- r.Run(ctx) }()
		until(t, "the list is read", func() bool { return r.Admit("pi-1", time.Now()) == nil })
		go func() { done <- h.Run(ctx) }()
		until(t, "it is forgotten when it is old", func() bool {
			all, err := cluster.GetRevoked(t.Context(), p.client)
			_, there := all["long-ago"]
			return err == nil && there == now.Before(before.Add(pki.MaxNodeTTL+pki.MaxRenewGrace))
		})
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	run(before.Add(pki.MaxNodeTTL + pki.MaxRenewGrace - time.Minute))
	run(before.Add(pki.MaxNodeTTL + pki.MaxRenewGrace + time.Minute))
}
