package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// machine is a node with a containerd, a config and no line to anywhere.
type machine struct {
	containerd *rig.Containerd
	config     string
	dir        string
}

func newMachine(t *testing.T, pods int) *machine {
	t.Helper()
	netns, err := rig.NewNetns("edgecore", rig.NetnsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &machine{dir: t.TempDir()}
	m.containerd, err = rig.StartContainerd(t.Context(), rig.Options{Netns: netns, CNI: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.containerd.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	busybox, err := image.Busybox(image.BusyboxName)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.containerd.Import(t.Context(), busybox); err != nil {
		t.Fatal(err)
	}
	m.config = filepath.Join(m.dir, "edgecore.yaml")
	text := fmt.Sprintf("nodeName: pi\nhub: [\"127.0.0.1:1\"]\ndataDir: %[1]s/data\nrunDir: %[1]s/run\npodLogsDir: %[1]s/logs\n"+
		"containerRuntimeEndpoint: %[2]s\ncgroupRoot: %[3]s\n", m.dir, m.containerd.Endpoint(), m.containerd.CgroupParent())
	if err := os.WriteFile(m.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m.remember(t, pods)
	return m
}

// remember puts pods into the store, as if the hub had sent them some day.
func (m *machine) remember(t *testing.T, pods int) {
	t.Helper()
	st, err := store.Open(filepath.Join(m.dir, "data", "store.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var objects []*wire.Object
	for i := range pods {
		name := fmt.Sprint("pod-", i)
		uid := "0a1b2c3d-0000-4000-8000-" + fmt.Sprintf("%012d", i)
		grace := int64(0)
		b, err := (&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid)},
			Spec: corev1.PodSpec{
				NodeName: "pi", RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSDefault,
				Containers: []corev1.Container{{Name: "main", Image: image.BusyboxName, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "1000000"}}},
			},
		}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, &wire.Object{Payload: b, Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_POD, Namespace: "shop", Name: name, Uid: uid, Version: wire.Version(b)}})
	}
	if err := st.Apply(t.Context(), objects, nil); err != nil {
		t.Fatal(err)
	}
	if err := st.MarkSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// edgecore runs one until stop.
func (m *machine) edgecore(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"--config", m.config}, &bytes.Buffer{}) }()
	stopped := false
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			t.Errorf("edgecore: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// running waits until every pod is Running with that many restarts, and returns
// the containers' ids by pod.
func (m *machine) running(t *testing.T, pods int, restarts int32) map[string]string {
	t.Helper()
	deadline := time.After(patience)
	for {
		s, err := localstatus.Get(t.Context(), filepath.Join(m.dir, "run"))
		good := 0
		for _, p := range s.Pods {
			if p.Phase == "Running" && p.Restarts == restarts {
				good++
			}
		}
		if err == nil && good == pods && len(s.Pods) == pods && s.Ready {
			return m.containers(t, pods)
		}
		select {
		case <-deadline:
			t.Fatalf("not all running with %d restarts: %+v, %v", restarts, s, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// containers asks containerd itself.
func (m *machine) containers(t *testing.T, pods int) map[string]string {
	t.Helper()
	list, err := m.containerd.CRI().ListContainers(t.Context(), &cri.ListContainersRequest{
		Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, c := range list.Containers {
		ids[c.Labels["io.kubernetes.pod.uid"]] = c.Id
	}
	if len(ids) != pods || len(list.Containers) != pods {
		t.Fatalf("%d containers of %d pods run, want %d", len(list.Containers), len(ids), pods)
	}
	return ids
}

func TestPodsStartFromTheStoreAlone(t *testing.T) {
	const pods = 3
	m := newMachine(t, pods)
	stop := m.edgecore(t)
	first := m.running(t, pods, 0)

	stop() // the containers go on
	if now := m.containers(t, pods); !equal(now, first) {
		t.Errorf("edgecore stopped, and containers changed: %v, %v", first, now)
	}
	stop = m.edgecore(t)
	if now := m.running(t, pods, 0); !equal(now, first) {
		t.Errorf("edgecore started again, and containers changed: %v, %v", first, now)
	}
	stop()

	if err := m.containerd.Reboot(); err != nil {
		t.Fatal(err)
	}
	m.edgecore(t) // before containerd, which it waits for
	if err := m.containerd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for uid, id := range m.running(t, pods, 1) {
		if first[uid] == id || first[uid] == "" {
			t.Errorf("after the reboot pod %s has container %s, had %s", uid, id, first[uid])
		}
	}
}

func equal(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}
