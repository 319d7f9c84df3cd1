package watch

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
)

// usual is a pod as a Deployment makes it, running for a while.
func usual(i int) *corev1.Pod {
	seconds, yes, now := int64(300), true, metav1.Now()
	condition := func(kind corev1.PodConditionType) corev1.PodCondition {
		return corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("till-7d4b9c6f5d-%05d", i), GenerateName: "till-7d4b9c6f5d-", Namespace: "shop",
			UID: "7f1c1b9e-0000-4000-8000-0000000" + "00000", ResourceVersion: strconv.Itoa(100000 + i), Generation: 1, CreationTimestamp: now,
			Labels:          map[string]string{"app": "till", "pod-template-hash": "7d4b9c6f5d", "tier": "front"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "till-7d4b9c6f5d", UID: "e1b7a6d2-1111-4222-8333-444455556666", Controller: &yes, BlockOwnerDeletion: &yes}},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kube-controller-manager", Operation: "Update", FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 1500))}},
		},
		Spec: corev1.PodSpec{
			NodeName: "node", ServiceAccountName: "default", DeprecatedServiceAccount: "default", RestartPolicy: corev1.RestartPolicyAlways,
			DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler", TerminationGracePeriodSeconds: &seconds, EnableServiceLinks: &yes, Priority: new(int32),
			SecurityContext: &corev1.PodSecurityContext{},
			Containers: []corev1.Container{{
				Name: "till", Image: "example.test/shop/till:1.14.2", ImagePullPolicy: corev1.PullIfNotPresent,
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
				Ports:        []corev1.ContainerPort{{ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
				EnvFrom:      []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "prices"}}}},
				VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access-abcde", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
			}},
			Volumes: []corev1.Volume{{Name: "kube-api-access-abcde", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &seconds, Path: "token"}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
			}}}}},
			Tolerations: []corev1.Toleration{
				{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
				{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: &now, PodIP: "10.1.0.5", PodIPs: []corev1.PodIP{{IP: "10.1.0.5"}}, HostIP: "192.0.2.1",
			Conditions: []corev1.PodCondition{condition(corev1.PodScheduled), condition(corev1.PodInitialized), condition(corev1.ContainersReady), condition(corev1.PodReady), condition("PodReadyToStartContainers")},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "till", Ready: true, Image: "example.test/shop/till:1.14.2", ImageID: "example.test/shop/till@sha256:0123456789012345678901234567890123456789012345678901234567890123",
				ContainerID: "containerd://0123456789012345678901234567890123456789012345678901234567890123", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}},
		},
	}
}

// BenchmarkMemoryOfAPod says what a hub holds for a pod, beside what an informer
// would hold, whole and with what a hub does not need cut off.
func BenchmarkMemoryOfAPod(b *testing.B) {
	const pods = 20000
	decoded := func(trim bool) any {
		all := make([]*corev1.Pod, pods)
		for i := range all {
			text, err := usual(i).Marshal() // as it comes, so that nothing is shared
			if err != nil {
				b.Fatal(err)
			}
			p := new(corev1.Pod)
			if err := p.Unmarshal(text); err != nil {
				b.Fatal(err)
			}
			if trim {
				p.ManagedFields, p.Status = nil, corev1.PodStatus{Phase: p.Status.Phase, Conditions: p.Status.Conditions}
			}
			all[i] = p
		}
		return all
	}
	measure := func(f func() any) float64 {
		before := heap()
		held := f()
		after := heap()
		runtime.KeepAlive(held)
		return float64(after-before) / pods
	}
	for b.Loop() {
		b.ReportMetric(measure(func() any { return decoded(false) }), "informer-B/pod")
		b.ReportMetric(measure(func() any { return decoded(true) }), "trimmed-informer-B/pod")
		b.ReportMetric(measure(func() any {
			s := newPlay(1, false).shelf
			for n := range pods / 5 {
				node := fmt.Sprint("node-", n)
				s.follow(node)
				p, err := s.begin(node)
				if err != nil {
					b.Fatal(err)
				}
				var list []k8sruntime.Object
				for i := range 5 {
					pod := usual(n*5 + i)
					pod.Spec.NodeName = node
					list = append(list, pod)
				}
				objects, err := s.entries(node, list)
				if err == nil {
					err = s.finish(node, p, "200000", objects)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			return s
		}), "hub-B/pod")
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// requests is what an apiserver has served, by verb and resource.
func requests(t testing.TB, client kubernetes.Interface) map[string]float64 {
	t.Helper()
	text, err := client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	sums := make(map[string]float64)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		labels, ok := strings.CutPrefix(lines.Text(), "apiserver_request_total{")
		if !ok {
			continue
		}
		labels, value, _ := strings.Cut(labels, "} ")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sums[label(labels, "verb")+" "+strings.Trim(label(labels, "resource")+"/"+label(labels, "subresource"), "/")] += n
	}
	return sums
}

// cpu is the seconds that a process has computed.
func cpu(t testing.TB, pid string) float64 {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields, ticks := strings.Fields(rest), 0.0
	for _, f := range fields[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks / 100
}

func label(labels, name string) string {
	_, rest, _ := strings.Cut(labels, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// BenchmarkComingBack says what it costs an apiserver, in requests a node, and how
// long it takes, when a hub starts and all its nodes come at once. The nodes have
// five pods with a ConfigMap each node shares with all.
func BenchmarkComingBack(b *testing.B) {
	const nodes, pods = 500, 5
	s := newSite(b)
	s.configMap(b, "prices", "1")
	for n := range nodes {
		s.node(b, fmt.Sprint("back-", n), nil)
		for i := range pods {
			s.pod(b, fmt.Sprint("back-", n, "-", i), fmt.Sprint("back-", n), "prices")
		}
	}
	for b.Loop() {
		s.back(b, nodes, pods, "alone", math.MaxInt)
		s.back(b, nodes, pods, "together", crowd)
	}
}

// back follows all nodes at once with a new Cluster; how many must wait for one
// list of all is given.
func (s *site) back(b *testing.B, nodes, pods int, how string, crowd int) {
	c := s.open(b)
	c.pods.crowd, c.nodes.crowd = crowd, crowd
	plane := strconv.Itoa(s.plane.PID())
	idle, rest := cpu(b, plane), time.NewTimer(idleFor)
	<-rest.C // what the control plane does about nodes that no kubelet serves
	idle = (cpu(b, plane) - idle) / idleFor.Seconds()
	before, busy, own, began := requests(b, s.admin), cpu(b, plane), cpu(b, "self"), time.Now()
	var all sync.WaitGroup
	for n := range nodes {
		all.Go(func() {
			_, stop := c.Follow(fmt.Sprint("back-", n))
			b.Cleanup(stop)
			resolve := c.Resolver(fmt.Sprint("back-", n))
			for {
				w, err := resolve(b.Context())
				if err == nil && len(w.Items) == pods+2 {
					return
				}
				select {
				case <-time.After(100 * time.Millisecond):
				case <-b.Context().Done():
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	took := time.Since(began).Seconds()
	b.ReportMetric(1000*(cpu(b, plane)-busy-idle*took)/float64(nodes), how+"-controlplane-cpu-ms/node")
	b.ReportMetric(1000*(cpu(b, "self")-own)/float64(nodes), how+"-hub-cpu-ms/node")
	b.ReportMetric(float64(nodes)/took, how+"-nodes/s")
	after, total := requests(b, s.admin), 0.0
	for _, what := range slices.Sorted(maps.Keys(after)) {
		if n := (after[what] - before[what]) / float64(nodes); n >= 0.01 {
			b.Logf("%-10s %-28s %6.2f a node", how, what, n)
			total += n
		}
	}
	b.ReportMetric(total, how+"-requests/node")
}

// idleFor is how long the control plane is watched before a measurement.
const idleFor = 10 * time.Second
