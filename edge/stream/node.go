package stream

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// healthz is well as long as the runtime has answered: edgecore ends by itself when its
// database is damaged, and a pod that cannot be looked after is told of in its status.
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	if _, err := s.o.Runtime(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	ok(w, r)
}

// pods are those that the node is to run, with their status.
func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	writePods(w, s.o.Pods())
}

// runningPods are those of which the runtime has something that runs, as far as it knows
// them.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	rt, err := s.runtime()
	if err != nil {
		answer(w, err)
		return
	}
	seen, err := rt.List(r.Context())
	if err != nil {
		answer(w, err)
		return
	}
	var list []*corev1.Pod
	for _, p := range seen {
		out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}}
		for i := range p.Containers {
			if c := &p.Containers[i]; c.State == runtime.Running {
				out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: c.Name, Image: c.Image})
			}
		}
		if len(out.Spec.Containers) > 0 {
			list = append(list, out)
		}
	}
	slices.SortFunc(list, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	writePods(w, list)
}

// writePods writes a PodList pod by pod: all at once would be a megabyte and more.
func writePods(w http.ResponseWriter, list []*corev1.Pod) {
	w.Header().Set("Content-Type", "application/json")
	write := func(text string) { _, _ = io.WriteString(w, text) } // a client that went away needs no answer
	write(`{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[`)
	encoder := json.NewEncoder(w)
	for i, p := range list {
		if i > 0 {
			write(",")
		}
		if err := encoder.Encode(p); err != nil {
			return
		}
	}
	write("]}\n")
}

func (s *Server) configz(w http.ResponseWriter, _ *http.Request) {
	if s.o.Config == nil {
		answer(w, fail(http.StatusNotFound, "node %s tells nothing of its config", s.o.Node))
		return
	}
	writeJSON(w, map[string]any{"edgecore": s.o.Config})
}

// notServed says which path it is that nobody serves, or not with this method.
func (s *Server) notServed(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		other := *r
		other.Method = method
		if _, pattern := mux.Handler(&other); pattern != "/" {
			w.Header().Set("Allow", method)
			http.Error(w, fmt.Sprintf("405 method not allowed: %s is served to %s", r.URL.Path, method), http.StatusMethodNotAllowed)
			return
		}
	}
	http.Error(w, fmt.Sprintf("404 page not found: node %s does not serve %s", s.o.Node, r.URL.Path), http.StatusNotFound)
}
