package device

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// site is an apiserver with two edge nodes, of which one is silent, and devices. It
// tells a Keeper what passes by.
type site struct {
	mu       sync.Mutex
	devices  map[string]*v1beta1.Device
	silenced int
	bound    chan string
	one      func(*v1beta1.Device)
}

func (s *site) OnDevices(one func(*v1beta1.Device), _ func()) { s.one = one }
func (s *site) OnNode(func(*corev1.Node, bool))               {}

func edgeNode(name string, ready corev1.ConditionStatus) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{roster.LabelEdge: "true"}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}},
	}
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/apis/devices.holdfast.io/v1beta1/"), "/")
	var answer any
	switch {
	case r.URL.Path == "/api/v1/nodes":
		answer = &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, Items: []corev1.Node{edgeNode("well", corev1.ConditionTrue), edgeNode("silent", corev1.ConditionUnknown)}}
	case parts[0] == "devices":
		list := &v1beta1.DeviceList{TypeMeta: metav1.TypeMeta{APIVersion: "devices.holdfast.io/v1beta1", Kind: "DeviceList"}}
		for _, d := range s.devices {
			list.Items = append(list.Items, *d)
		}
		answer = list
	case len(parts) >= 4 && s.devices[parts[3]] != nil:
		d := s.devices[parts[3]]
		switch r.Method {
		case http.MethodPut:
			said := new(v1beta1.Device)
			_ = json.NewDecoder(r.Body).Decode(said)
			d.Status = said.Status
			s.silenced++
		case http.MethodPatch:
			said := new(v1beta1.Device)
			_ = json.NewDecoder(r.Body).Decode(said)
			d.Spec.NodeName = said.Spec.NodeName
			s.bound <- d.Spec.NodeName
		}
		answer = d
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// TestASilentSiteDelaysNoBinding: what is said of its devices is written slowly.
func TestASilentSiteDelaysNoBinding(t *testing.T) {
	s := &site{devices: make(map[string]*v1beta1.Device), bound: make(chan string, 1)}
	add := func(name string, spec v1beta1.DeviceSpec) *v1beta1.Device {
		d := &v1beta1.Device{TypeMeta: metav1.TypeMeta{APIVersion: "devices.holdfast.io/v1beta1", Kind: "Device"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: spec}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.devices[name] = d
		return d
	}
	const many = 40 * statusesPerSecond
	for i := range many {
		add(fmt.Sprint("d-", i), v1beta1.DeviceSpec{NodeName: "silent"})
	}
	server := httptest.NewServer(s)
	defer server.Close()
	config := &rest.Config{Host: server.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
	nodes, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	client, err := crd.New(config)
	if err != nil {
		t.Fatal(err)
	}
	k := NewKeeper(KeeperOptions{Client: client, Nodes: nodes, Cluster: s, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { k.Lead(ctx) })
	defer all.Wait()
	defer cancel()
	silenced := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.silenced }
	for tick := time.NewTicker(10 * time.Millisecond); silenced() == 0; <-tick.C {
		if t.Context().Err() != nil {
			t.Fatal("nothing is said of the silent site")
		}
	}
	s.one(add("new", v1beta1.DeviceSpec{NodeSelector: map[string]string{"floor": "2"}}))
	select {
	case node := <-s.bound:
		if node != "well" {
			t.Errorf("bound to %s", node)
		}
	case <-time.After(time.Minute):
		t.Fatal("a new device is not bound")
	}
	if n := silenced(); n > many/2 {
		t.Errorf("the binding waited for what is said of %d devices", n)
	}
}
