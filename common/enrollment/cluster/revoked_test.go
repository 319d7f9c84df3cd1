package cluster_test

import (
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
)

func TestWhichCertificatesAreVoid(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	before := now.Add(10 * time.Minute)
	all := cluster.Revoked{"stolen": before}
	for name, c := range map[string]struct {
		node   string
		issued time.Time
		want   bool
	}{
		"another node's":                     {"other", now.AddDate(-1, 0, 0), false},
		"an old one":                         {"stolen", now.AddDate(-1, 0, 0), true},
		"one of this moment":                 {"stolen", now, true},
		"one of the very second":             {"stolen", before, true},
		"one of the next second":             {"stolen", before.Add(time.Second), false},
		"one by a hub whose clock was ahead": {"stolen", now.AddDate(1, 0, 0), true},
		"another node's by such a hub":       {"other", now.AddDate(1, 0, 0), false},
	} {
		if _, void := all.Void(c.node, c.issued, now); void != c.want {
			t.Errorf("%s: void %v", name, void)
		}
	}
	for _, at := range []time.Time{now, before, before.Add(time.Hour)} {
		issue := all.IssueAt("stolen", at)
		if _, void := all.Void("stolen", issue.Truncate(time.Second), at); void || issue.Before(at) {
			t.Errorf("a certificate signed at %s for %s is void", issue, at)
		}
	}
	if at := all.IssueAt("other", now); !at.Equal(now) {
		t.Errorf("for another node at %s", at)
	}
}

func TestAnEntryThatCannotBeReadVoidsEverything(t *testing.T) {
	all, err := cluster.ReadRevoked(&corev1.ConfigMap{Data: map[string]string{"a": "yesterday", "b": "2026-05-01T12:00:00Z"}})
	if err == nil {
		t.Error("it is not said")
	}
	now := time.Now()
	for issued, node := range map[time.Time]string{now: "a", now.AddDate(50, 0, 0): "a", now.AddDate(-50, 0, 0): "b"} {
		if _, void := all.Void(node, issued, now); !void {
			t.Errorf("%s, signed %s, is good", node, issued)
		}
	}
	if _, void := all.Void("b", now, now); void {
		t.Error("one entry spoils another")
	}
	if old := all.Old(now.AddDate(40, 0, 0)); len(old) != 1 || old[0] != "b" {
		t.Errorf("old are %v", old)
	}
}

// revoking lets several administrators write at once.
func revoking(t *testing.T, client kubernetes.Interface) {
	var all sync.WaitGroup
	nodes := []string{"pi-1", "pi-2", "pi-3", "pi-1"}
	for _, node := range nodes {
		all.Go(func() {
			if _, err := cluster.Revoke(t.Context(), client, node); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	revoked, err := cluster.GetRevoked(t.Context(), client)
	if err != nil || len(revoked) != 3 {
		t.Fatalf("revoked are %v, %v", revoked, err)
	}
	now := time.Now()
	for node, before := range revoked {
		if _, void := revoked.Void(node, now, now); !void || before.After(now.Add(time.Hour)) {
			t.Errorf("%s until %s", node, before)
		}
	}
	if _, err := cluster.Revoke(t.Context(), client, "../pi"); err == nil {
		t.Error("something that is no node was revoked")
	}
	// A later revocation is never taken back by an earlier one.
	later := now.AddDate(0, 1, 0).UTC().Truncate(time.Second)
	api := client.CoreV1().ConfigMaps(cluster.Namespace)
	m, err := api.Get(t.Context(), cluster.RevokedConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Data["pi-1"] = later.Format(time.RFC3339)
	m.Data["pi-2"] = now.Add(-pki.MaxNodeTTL - pki.MaxRenewGrace - time.Hour).UTC().Format(time.RFC3339)
	if _, err := api.Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if before, err := cluster.Revoke(t.Context(), client, "pi-1"); err != nil || !before.Equal(later) {
		t.Errorf("revoked until %s, %v; want %s", before, err, later)
	}
	if forgotten, err := cluster.ForgetRevoked(t.Context(), client, now); err != nil || len(forgotten) != 1 || forgotten[0] != "pi-2" {
		t.Errorf("forgot %v, %v", forgotten, err)
	}
}
