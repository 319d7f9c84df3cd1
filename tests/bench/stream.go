package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/klog/v2"

	"github.com/holdfast-edge/holdfast/tests/rig/image"
	"github.com/holdfast-edge/holdfast/tests/world"
)

const (
	execCalls    = 200       // of each end by each way
	logBytes     = 100 << 20 // of the log that is read
	copyBytes    = 200 << 20 // of the file that is copied
	streamRounds = 3         // of reading and copying
	streamPod    = "stream"

	// afterwork is the rest before a call: a runtime is busy with a command for a while after its end.
	afterwork = 100 * time.Millisecond

	streamImageName = "example.test/holdfast/stream:1"
)

// streamBench measures what goes through a node's connection beside its pods: logs, exec, cp, port-forward.
type streamBench struct {
	*bench
	ends []*end
	rows []streamRow
}

// end is a node that streams come from, by either way.
type end struct {
	name    string // in the table
	node    string
	podLogs string
	edge    *world.Node // nil: the kubelet
	direct  *rest.Config
	hop     bool // the kubelet again, directly alone, with a proxy before it that does nothing else
}

// has says whether an end is reached that way.
func (e *end) has(w way) bool { return w.direct || !e.hop }

// way is how a client reaches a pod: through the apiserver, as kubectl does, or at the node's kubelet API, as
// the apiserver does.
type way struct {
	name   string
	direct bool
}

var ways = []way{{"through the apiserver", false}, {"directly", true}}

// streamRow is a figure with a value for each end, the kubelet's first.
type streamRow struct {
	figure string
	values []string
	aim    string
}

func (s *streamBench) add(figure, aim string, w way, value func(*end) string) {
	r := streamRow{figure: figure, aim: aim}
	line := ""
	for _, e := range s.ends {
		is := "-"
		if e.has(w) {
			is = value(e)
		}
		r.values = append(r.values, is)
		line += "  " + e.name + " " + r.values[len(r.values)-1]
	}
	s.rows = append(s.rows, r)
	say("%s:%s", figure, line)
}

// measureStreams takes all figures of streams, the ends of each figure by turns.
func (b *bench) measureStreams(ctx context.Context) (err error) {
	say("starting two more edge nodes and a kubelet")
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // client-go tells of every copy that is broken off
	s := &streamBench{bench: b, ends: []*end{{name: "kubelet", node: kubeletNode}}}
	for _, transport := range []string{"websocket", "quic"} { // first: they would not join beside a kubelet
		n, err := b.world.AddNode(ctx, "stream-"+transport, world.NodeOptions{JoinArgs: []string{"--transport", transport}})
		if err != nil {
			return err
		}
		s.ends = append(s.ends, &end{name: transport, node: n.Name, podLogs: n.PodLogs(), edge: n})
	}
	k, err := startKubelet(ctx, b.world)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.stop(b.world)) }()
	s.ends[0].podLogs = k.podLogs()
	img, err := streamImage()
	if err != nil {
		return err
	}
	for _, e := range s.ends {
		runtime := k.containerd
		if e.edge != nil {
			runtime = e.edge.Containerd
		}
		if err := runtime.Import(ctx, img); err != nil {
			return err
		}
	}
	for _, e := range s.ends {
		if err := s.prepare(ctx, e); err != nil {
			return err
		}
	}
	hop, err := k.behindAProxy(s.ends[0])
	if err != nil {
		return err
	}
	s.ends = append(s.ends, hop)
	for _, part := range []struct {
		name string
		take func(context.Context) error
	}{{"exec", s.roundTrips}, {"logs", s.logs}, {"cp", s.copies}, {"forward", s.forwards}, {"deliver", s.deliveries}} {
		if !slices.Contains(s.streams, part.name) {
			continue
		}
		if err := part.take(ctx); err != nil {
			return err
		}
	}
	s.print()
	return b.clearStreams(ctx, s)
}

// streamImage is busybox and the echo.
func streamImage() (*image.Image, error) {
	root, err := world.Root()
	if err != nil {
		return nil, err
	}
	echo, err := os.ReadFile(helper(root, "echo"))
	if err != nil {
		return nil, err
	}
	spec, err := image.BusyboxSpec(streamImageName)
	if err != nil {
		return nil, err
	}
	spec.Files = append(spec.Files, image.File{Path: "bin/echo-all", Data: echo})
	return image.Build(spec)
}

// prepare finds the node's kubelet API and starts its pods.
func (s *streamBench) prepare(ctx context.Context, e *end) error {
	err := world.Eventually(ctx, patience, "node "+e.node+" says where its kubelet API is", func(ctx context.Context) (bool, error) {
		n, err := s.world.Client().CoreV1().Nodes().Get(ctx, e.node, metav1.GetOptions{})
		if err != nil || n.Status.DaemonEndpoints.KubeletEndpoint.Port == 0 {
			return false, err
		}
		e.direct = s.world.RestConfig()
		addressed := ""
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && addressed == "" { // the first, as an apiserver does
				addressed = a.Address
				e.direct.Host = "https://" + net.JoinHostPort(a.Address, strconv.Itoa(int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)))
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for name, script := range map[string]string{
		streamPod: "exec echo-all",
		"talker":  "echo said", // it has ended, so that nobody rotates its log
	} {
		grace := int64(1)
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name + "-" + e.node, Labels: map[string]string{"round": "0"}},
			Spec: corev1.PodSpec{
				NodeName: e.node, RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace,
				Containers: []corev1.Container{{
					Name: "main", Image: streamImageName, Command: []string{"sh", "-c", script}, ImagePullPolicy: corev1.PullIfNotPresent,
					VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "down", MountPath: "/down"}},
				}},
				Volumes: []corev1.Volume{
					{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
					{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
						Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}},
					}}},
				},
			},
		}
		if _, err := s.world.Client().CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
		want := corev1.PodRunning
		if name != streamPod {
			want = corev1.PodSucceeded
		}
		err := world.Eventually(ctx, patience, fmt.Sprintf("pod %s is %s", pod.Name, want), func(ctx context.Context) (bool, error) {
			p, err := s.world.Client().CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{})
			return err == nil && p.Status.Phase == want, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) clearStreams(ctx context.Context, s *streamBench) error {
	for _, e := range s.ends {
		if e.hop {
			continue // the kubelet's
		}
		for _, name := range []string{streamPod, "talker"} {
			if err := b.world.Client().CoreV1().Pods("default").Delete(ctx, name+"-"+e.node, metav1.DeleteOptions{}); err != nil {
				return err
			}
		}
	}
	return world.Eventually(ctx, patience, "no pod left", func(ctx context.Context) (bool, error) {
		list, err := b.world.Client().CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) == 0, err
	})
}

// url is that of a request about the stream pod of an end: subresource is exec or portforward.
func (s *streamBench) url(e *end, w way, subresource string, query url.Values) (*rest.Config, *url.URL, error) {
	config, path := s.world.RestConfig(), "/api/v1/namespaces/default/pods/"+streamPod+"-"+e.node+"/"+subresource
	if w.direct {
		config = e.direct
		path = map[string]string{"exec": "/exec/default/" + streamPod + "-" + e.node + "/main", "portforward": "/portForward/default/" + streamPod + "-" + e.node}[subresource]
	}
	u, err := url.Parse(config.Host)
	if err != nil {
		return nil, nil, err
	}
	u.Path, u.RawQuery = path, query.Encode()
	return config, u, nil
}

// exec runs a command, by websocket as kubectl does, and directly by SPDY as the apiserver does.
func (s *streamBench) exec(ctx context.Context, e *end, w way, in io.Reader, out io.Writer, command ...string) error {
	query := url.Values{"command": command, "stderr": {"true"}, "container": {"main"}, "stdout": {"true"}}
	if w.direct {
		query = url.Values{"command": command, "error": {"1"}, "output": {"1"}}
	}
	if in != nil {
		query.Set(map[bool]string{true: "input", false: "stdin"}[w.direct], map[bool]string{true: "1", false: "true"}[w.direct])
	}
	config, u, err := s.url(e, w, "exec", query)
	if err != nil {
		return err
	}
	var executor remotecommand.Executor
	if w.direct {
		executor, err = remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
	} else {
		executor, err = remotecommand.NewWebSocketExecutor(config, http.MethodGet, u.String())
	}
	if err != nil {
		return err
	}
	var failed limited
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: &failed}); err != nil {
		return fmt.Errorf("exec %q on node %s %s: %w: %s", command, e.node, w.name, err, failed.text)
	}
	return nil
}

// limited keeps the beginning.
type limited struct{ text []byte }

func (l *limited) Write(b []byte) (int, error) {
	if len(l.text) < 1000 {
		l.text = append(l.text, b...)
	}
	return len(b), nil
}

// counter counts what is written to it.
type counter struct{ bytes int64 }

func (c *counter) Write(b []byte) (int, error) {
	c.bytes += int64(len(b))
	return len(b), nil
}

// byTurns calls do for each end, in an order by chance: what one leaves behind is not always the same one's burden.
func (s *streamBench) byTurns(w way, do func(*end) error) error {
	for _, i := range rand.Perm(len(s.ends)) {
		if !s.ends[i].has(w) {
			continue
		}
		if err := do(s.ends[i]); err != nil {
			return err
		}
	}
	return nil
}

// roundTrips are calls of `true`, from the client's request until it knows the exit code.
func (s *streamBench) roundTrips(ctx context.Context) error {
	for _, w := range ways {
		took := map[*end][]time.Duration{}
		for call := range execCalls + 5 {
			err := s.byTurns(w, func(e *end) error {
				time.Sleep(afterwork)
				began := time.Now()
				if err := s.exec(ctx, e, w, nil, io.Discard, "true"); err != nil {
					return err
				}
				if call >= 5 { // the first ones warm up
					took[e] = append(took[e], time.Since(began))
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		for _, share := range []float64{0.5, 0.99} {
			of := func(e *end) time.Duration { return percentile(slices.Clone(took[e]), share) }
			s.add(fmt.Sprintf("exec true, %s, p%.0f", w.name, share*100), "kubelet + 2 ms", w, func(e *end) string {
				return s.beside(e, of(e), of(s.ends[0]))
			})
		}
	}
	return nil
}

// beside is a time, and how much more it is than the kubelet's.
func (s *streamBench) beside(e *end, is, kubelet time.Duration) string {
	millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	if e == s.ends[0] {
		return fmt.Sprintf("%.1f ms", millis(is))
	}
	return fmt.Sprintf("%.1f ms (%+.1f)", millis(is), millis(is-kubelet))
}

// rate is bytes a second in MB, and what share of the kubelet's it is.
func (s *streamBench) rate(e *end, size int64, took map[*end][]time.Duration) string {
	of := func(e *end) float64 { return float64(size) / 1e6 / median(took[e]).Seconds() }
	if e == s.ends[0] {
		return fmt.Sprintf("%.0f MB/s", of(e))
	}
	return fmt.Sprintf("%.0f MB/s (%.0f %%)", of(e), 100*of(e)/of(s.ends[0]))
}

func (s *streamBench) print() {
	fmt.Printf("\nstreams, beside a kubelet on loopback in the same run (%d calls, medians of %d rounds)\n", execCalls, streamRounds)
	fmt.Printf("  %-58s", "")
	for _, e := range s.ends {
		fmt.Printf(" %-22s", e.name)
	}
	fmt.Printf(" %s\n", "AIM")
	for _, r := range s.rows {
		fmt.Printf("  %-58s", r.figure)
		for _, v := range r.values {
			fmt.Printf(" %-22s", v)
		}
		fmt.Printf(" %s\n", r.aim)
	}
}

func (e *end) log() (string, error) {
	files, err := filepath.Glob(filepath.Join(e.podLogs, "default_talker-"+e.node+"_*", "main", "0.log"))
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("the log of node %s is in %d files, want one", e.node, len(files))
	}
	if err != nil {
		return "", err
	}
	return files[0], nil
}
