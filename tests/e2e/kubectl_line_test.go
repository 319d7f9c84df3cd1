package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// Both ends of a line with this timing know within their sum that it is cut.
const (
	keepAlive   = 2 * time.Second
	lineTimeout = 2 * time.Second
)

// TestACutLineEndsStreams: who looks into a pod hears that the line is gone, and soon.
func TestACutLineEndsStreams(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	timing := []string{"keepAlive: " + keepAlive.String(), "lineTimeout: " + lineTimeout.String()}
	hub, err := s.World.AddHub(s.Ctx, timing...)
	s.Must(err)
	for _, transport := range transports {
		n := s.Node("cut-"+transport, world.NodeOptions{Hubs: []string{hub.Address}, JoinArgs: []string{"--transport", transport}})
		s.Configure(n, timing...)
		line(s, n, "connected again", lineIsUp)
		for _, protocol := range []scene.Protocol{scene.Websocket, scene.SPDY} {
			t.Run(fmt.Sprintf("line %s, kubectl %s", transport, protocol), func(t *testing.T) {
				cutWhileStreaming(way{s.Within(t).By(protocol), n})
			})
		}
	}
}

func cutWhileStreaming(w way) {
	pod := w.pod("cut", func(p *corev1.Pod) {
		p.Spec.Containers[0].Command = scene.Shell("nc -ll -p 9000 -e cat & while :; do date; sleep 1; done")
		p.Spec.Containers[0].ReadinessProbe = listening(9000)
	})
	logs := w.Call(nil, "logs", "-f", pod)
	logs.Says(":")
	run := w.Call(nil, "exec", pod, "--", "sh", "-c", "echo inside; sleep 100000")
	run.Says("inside")
	terminal := w.Terminal(24, 80, "exec", "-it", pod, "--", "sh", "-c", "echo inside; sleep 100000")
	terminal.Says("inside")
	address, forwarding := w.forward(pod, 9000)
	conn, err := net.Dial("tcp", address)
	w.Must(err)
	defer conn.Close()
	_, err = io.WriteString(conn, "echo\n")
	w.Must(err)
	_, err = io.ReadFull(conn, make([]byte, 5))
	w.Must(err)

	w.Must(w.node.Cut())
	cut := time.Now()
	// Beside what is promised, a loaded machine may take its time.
	limit := keepAlive + lineTimeout + 10*time.Second
	for what, call := range map[string]*scene.Call{"logs -f": logs, "exec": run, "exec -it": terminal, "port-forward": forwarding} {
		code := call.Wait(limit)
		w.Logf("%s ended %.1f s after the cut with %d: %q %q", what, time.Since(cut).Seconds(), code, lastLine(call.Out.String()), lastLine(call.Err.String()))
		switch said := call.Out.String() + call.Err.String(); {
		case call == logs && !strings.Contains(said, "the line to node "+w.node.Name+" was cut"):
			w.Errorf("%s does not say why it ends: %q", what, said)
		case call != logs && (code == 0 || !strings.Contains(strings.ToLower(said), "error")):
			w.Errorf("%s: exit code %d: %q", what, code, said)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(conn); os.IsTimeout(err) {
		w.Error("a forwarded connection stays open")
	}
	w.Must(w.node.Mend())
	line(w.Scene, w.node, "connected again", lineIsUp)
	w.Until("exec works again", func(context.Context) (bool, error) {
		out, said, _ := w.Run(nil, "exec", pod, "--", "echo", "back")
		return out == "back\n", fmt.Errorf("%s", said)
	})
	w.Delete(pod)
}

func lineIsUp(l localstatus.Line) bool { return l.Connected }

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// TestAStoppedReaderDelaysNobody: what one who never reads is owed fills a window and no more.
func TestAStoppedReaderDelaysNobody(t *testing.T) {
	twoWays(t, func(w way) {
		flood := w.pod("flood", func(p *corev1.Pod) {
			p.Spec.Containers[0].Command = scene.Shell(`while ! test -e /go; do sleep 0.1; done
				yes 'this line is as long as lines of logs are, which is a hundred characters or so, with all they have' | head -n 1000000; touch /done; sleep 100000`)
		})
		told := w.pod("told", func(p *corev1.Pod) {
			p.Labels = map[string]string{"round": "0"}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "down", MountPath: "/down"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
				Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}},
			}}}}
		})
		files, err := filepath.Glob(filepath.Join(w.node.DataDir(), "pods", string(w.Get(told).UID), "volumes", "*", "down", "labels"))
		w.Must(err)
		if len(files) != 1 {
			w.Fatalf("the labels of pod %s are in %v", told, files)
		}
		hub, err := w.World.CloudcorePid()
		w.Must(err)
		edge, err := w.node.EdgecorePid()
		w.Must(err)
		before := [2]int{world.Resident(hub), world.Resident(edge)}

		stopped := w.Call(nil, "logs", "-f", flood)
		w.touch(flood, "/go")
		stopped.Says("hundred")
		stopped.Signal(syscall.SIGSTOP)
		w.Until("the container has said all", func(ctx context.Context) (bool, error) {
			_, code, err := w.node.Exec(ctx, w.Running(w.node)[flood+"/main"].ID, "test", "-e", "/done")
			return code == 0, err
		})
		var slowest time.Duration
		for round := 1; round <= 10; round++ {
			began := time.Now()
			patch := fmt.Sprintf(`{"metadata":{"labels":{"round":"%d"}}}`, round)
			_, err := w.Client.CoreV1().Pods(w.NS).Patch(w.Ctx, told, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			w.Must(err)
			w.Until("the new label is on the node", func(context.Context) (bool, error) {
				b, err := os.ReadFile(files[0])
				return strings.Contains(string(b), fmt.Sprintf(`round="%d"`, round)), err
			})
			slowest = max(slowest, time.Since(began))
		}
		if slowest > 10*time.Second {
			w.Errorf("beside a stopped reader a pod's change took %s to its node", slowest)
		}
		// Other streams go on, too.
		if out := w.Do("exec", told, "--", "echo", "alive"); out != "alive\n" {
			w.Errorf("exec beside a stopped reader: %q", out)
		}
		for i, pid := range []int{hub, edge} {
			name := [2]string{"cloudcore", "edgecore"}[i]
			after := world.Resident(pid)
			w.Logf("%s: %d KiB before, %d KiB with a reader that stopped; the slowest change took %s", name, before[i], after, slowest)
			if after-before[i] > 48<<10 {
				w.Errorf("%s has grown from %d to %d KiB", name, before[i], after)
			}
		}
		stopped.Signal(syscall.SIGKILL)
		w.Delete(flood)
		w.Delete(told)
	})
}
