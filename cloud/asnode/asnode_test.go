package asnode

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func TestEveryRequestIsMadeAsTheNodeOfItsContextOrNotAtAll(t *testing.T) {
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if user, groups := r.Header.Get("Impersonate-User"), r.Header.Values("Impersonate-Group"); user != "system:node:"+r.URL.Query().Get("fieldManager") && r.Method == http.MethodPatch || len(groups) != 1 || groups[0] != "system:nodes" {
			t.Errorf("as user %q of groups %q", user, groups)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"Node","apiVersion":"v1","metadata":{"name":"n"}}`))
	}))
	defer server.Close()
	client, err := NewClient(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"a", "b"} {
		if _, err := client.CoreV1().Nodes().Patch(With(t.Context(), node), "n", "application/merge-patch+json", []byte("{}"), metav1.PatchOptions{FieldManager: node}); err != nil {
			t.Error(err)
		}
	}
	for name, ctx := range map[string]context.Context{"no node": t.Context(), "an empty node": With(t.Context(), "")} {
		if _, err := client.CoreV1().Nodes().Get(ctx, "n", metav1.GetOptions{}); !errors.Is(err, ErrNoNode) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests left the process, want 2", n)
	}
}
