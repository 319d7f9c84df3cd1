package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// way is a line and a protocol of kubectl's. Together the ways have each of both, and both with each.
type way struct {
	*scene.Kubectl
	node *world.Node
}

// transports are the lines that a node may have, by what `holdfast join` is told.
var transports = []string{"websocket", "quic"}

// operated are the nodes that the tests of kubectl share, one for each transport: they only look at
// their own pods.
var operated = sync.OnceValues(func() (map[string]*world.Node, error) {
	w, err := scene.World()
	if err != nil {
		return nil, err
	}
	nodes := map[string]*world.Node{}
	for _, transport := range transports {
		nodes[transport], err = w.AddNode(context.Background(), "operated-"+transport, world.NodeOptions{JoinArgs: []string{"--transport", transport}})
		if err != nil {
			return nil, err
		}
	}
	return nodes, nil
})

// everyWay runs a test on nodes with lines of either kind, by either protocol.
func everyWay(t *testing.T, test func(way)) {
	runWays(t, func(string, scene.Protocol) bool { return true }, test)
}

// twoWays does it for what takes long: each line and each protocol, but not each with each.
func twoWays(t *testing.T, test func(way)) {
	runWays(t, func(transport string, p scene.Protocol) bool { return (transport == "quic") == (p == scene.Websocket) }, test)
}

func runWays(t *testing.T, wanted func(transport string, p scene.Protocol) bool, test func(way)) {
	t.Parallel()
	s := scene.New(t)
	nodes, err := operated()
	s.Must(err)
	for _, transport := range transports {
		s.Watch(nodes[transport])
		for _, protocol := range []scene.Protocol{scene.Websocket, scene.SPDY} {
			if !wanted(transport, protocol) {
				continue
			}
			t.Run(fmt.Sprintf("line %s, kubectl %s", transport, protocol), func(t *testing.T) {
				test(way{s.Within(t).By(protocol), nodes[transport]})
			})
		}
	}
}

// name makes a pod's name unlike that of the same test's other ways.
func (w way) name(base string) string {
	return strings.ToLower(fmt.Sprintf("%s-%s-%x", base, w.node.Name, rand.Uint32()))
}

// pod starts a pod that sleeps, or what change makes of it.
func (w way) pod(base string, change func(*corev1.Pod)) string {
	w.Helper()
	name := w.name(base)
	w.Start(name, w.node, change)
	return name
}

// noise is what no compression makes smaller.
func noise(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestKubectlExec(t *testing.T) {
	twoWays(t, func(w way) {
		pod := w.pod("exec", nil)
		out, said, code := w.Run(nil, "exec", pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
		if out != "out\n" || !strings.HasPrefix(said, "err\n") || code != 7 {
			w.Errorf("stdout %q, stderr %q, exit code %d; want out, err, 7", out, said, code)
		}
		if out, said, code := w.Run(nil, "exec", pod, "--", "/no/such/program"); code == 0 || !strings.Contains(said, "no such file") {
			w.Errorf("a program that is not there: exit code %d, %q, %q", code, out, said)
		}
		if out, said, code := w.Run(nil, "exec", pod, "-c", "nobody", "--", "true"); code == 0 || !strings.Contains(said, "nobody") {
			w.Errorf("a container that is not there: exit code %d, %q, %q", code, out, said)
		}
		payload := noise(20 << 20)
		for attempt := 1; ; attempt++ {
			out, said, code = w.Run(bytes.NewReader(payload), "exec", "-i", pod, "--", "cat")
			if attempt == 5 || !w.cutByApiserver(said, code) {
				break
			}
		}
		if code != 0 || sha256.Sum256([]byte(out)) != sha256.Sum256(payload) {
			w.Errorf("20 MiB through cat: exit code %d, %d bytes came back: %s", code, len(out), said)
		}
		out, said, code = w.Run(bytes.NewReader(payload), "exec", "-i", pod, "--", "sha256sum")
		if want := fmt.Sprintf("%x  -\n", sha256.Sum256(payload)); code != 0 || out != want {
			w.Errorf("20 MiB into sha256sum: exit code %d, %q, want %q: %s", code, out, want, said)
		}

		// kubectl that dies takes away stdin, as a closed terminal does.
		call := w.Call(nil, "exec", "-i", pod, "--", "sh", "-c", "echo reading; cat; echo over > /tmp/over; sleep 1000")
		call.Says("reading")
		call.Signal(syscall.SIGKILL)
		w.Until("the program inside reads the end of its input", func(context.Context) (bool, error) {
			out, _, code := w.Run(nil, "exec", pod, "--", "cat", "/tmp/over")
			return code == 0 && out == "over\n", nil
		})
	})
}

// cutByApiserver says that kubectl failed because the apiserver reset its connection. Over
// websocket the apiserver is the command's client itself, and closes its connection to
// kubectl with the command's end, whatever is still on its way there: kubectl's next
// keep-alive then makes the kernel throw that away. No node can mend it, and kubectl says
// so and fails.
func (w way) cutByApiserver(said string, code int) bool {
	cut := w.Protocol == scene.Websocket && code != 0 && strings.Contains(said, "connection reset by peer")
	if cut {
		w.Logf("the apiserver cut off kubectl: %s", said)
	}
	return cut
}

// TestKubectlExecIsReadSlowly: what a command has said arrives, or kubectl fails.
func TestKubectlExecIsReadSlowly(t *testing.T) {
	const size, piece = 14 << 20, 256 << 10
	everyWay(t, func(w way) {
		w.Parallel()
		cmd := w.Command("exec", w.pod("slow", nil), "--", "head", "-c", fmt.Sprint(size), "/dev/zero")
		out, err := cmd.StdoutPipe()
		w.Must(err)
		var said bytes.Buffer
		cmd.Stderr = &said
		w.Must(cmd.Start())
		var got int64
		for n := int64(piece); n == piece; got += n {
			time.Sleep(500 * time.Millisecond) // it takes longer than kubectl waits between two keep-alives
			n, _ = io.CopyN(io.Discard, out, piece)
		}
		err = cmd.Wait()
		if err == nil && got == size || w.cutByApiserver(said.String(), cmd.ProcessState.ExitCode()) {
			return
		}
		w.Errorf("%d of %d bytes came, %v: %s", got, size, err, said.String())
	})
}

// saysSize asks a shell that was asked once for its terminal's size until that is as wanted. A
// busy one is not asked again before it has answered: all that would pile up.
func saysSize(s *scene.Scene, shell *scene.Call, want string) {
	s.Helper()
	asked := 1
	s.Until("the program inside sees the terminal's new size", func(context.Context) (bool, error) {
		out := shell.Out.String()
		if strings.Count(out, "# ") > asked {
			shell.Type("stty size\n")
			asked++
		}
		return strings.Contains(out, want), nil
	})
}

func TestKubectlExecOnATerminal(t *testing.T) {
	everyWay(t, func(w way) {
		pod := w.pod("tty", nil)
		call := w.Terminal(24, 80, "exec", "-it", pod, "--", "sh")
		call.Says("#")
		call.Type("stty size\n")
		call.Says("24 80")
		call.Resize(50, 132)
		saysSize(w.Scene, call, "50 132")
		call.Type("exit 5\n")
		if code := call.Wait(scene.Patience); code != 5 {
			w.Errorf("exit code %d, want the shell's 5", code)
		}

		call = w.Terminal(24, 80, "exec", "-it", pod, "--", "sh", "-c", `trap "echo interrupted; exit 42" INT; echo waiting; while :; do sleep 0.1; done`)
		call.Says("waiting")
		call.Type("\x03")
		call.Says("interrupted")
		if code := call.Wait(scene.Patience); code != 42 {
			w.Errorf("exit code %d after Ctrl-C, want 42", code)
		}
	})
}

func TestKubectlAttachAndRun(t *testing.T) {
	twoWays(t, func(w way) {
		pod := w.pod("attach", func(p *corev1.Pod) {
			p.Spec.Containers[0].Stdin = true
			p.Spec.Containers[0].Command = scene.Shell("while read line; do echo heard $line; done; echo deaf; sleep 1000")
		})
		// containerd ends an attach when its input ends, so both stay open.
		attach := func() (*scene.Call, *os.File) {
			in, out, err := os.Pipe()
			w.Must(err)
			w.Cleanup(func() { in.Close(); out.Close() })
			return w.Call(in, "attach", "-i", pod), out
		}
		say := func(to *os.File, line string) {
			_, err := io.WriteString(to, line+"\n")
			w.Must(err)
		}
		call, in := attach()
		say(in, "you")
		call.Says("heard you")
		call.Signal(syscall.SIGKILL)
		call.Wait(scene.Patience)

		// Another comes later, beside one that only listens.
		listener := w.Call(nil, "attach", pod)
		second, in := attach()
		say(in, "again")
		second.Says("heard again")
		w.Until("who listens hears it, too", func(context.Context) (bool, error) {
			say(in, "all")
			return strings.Contains(listener.Out.String(), "heard all"), nil
		})
		listener.Signal(syscall.SIGKILL)

		name := w.name("once")
		overrides := fmt.Sprintf(`{"spec":{"nodeSelector":{"kubernetes.io/hostname":%q}}}`, w.node.Name)
		run := w.Terminal(30, 90, "run", name, "-it", "--rm", "--restart=Never", "--image", world.BusyboxImage, "--overrides", overrides, "--command", "--",
			"sh", "-c", `while ! read line || [ -z "$line" ]; do :; done; stty size; echo hello $line`)
		w.When(name, "runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		w.Until("the program inside hears", func(context.Context) (bool, error) {
			if !strings.Contains(run.Out.String(), "hello") && !run.Ended() {
				run.Type("world\n") // what is typed before kubectl is attached is lost
			}
			return strings.Contains(run.Out.String(), "hello"), nil
		})
		run.Says("30 90")
		run.Says("hello world")
		run.Says("deleted")
		if code := run.Wait(scene.Patience); code != 0 {
			w.Errorf("exit code %d", code)
		}
		w.Gone(name)
	})
}

func TestKubectlCopies(t *testing.T) {
	twoWays(t, func(w way) {
		pod := w.pod("cp", func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		})
		there, back := w.Scratch("there"), w.Scratch("back")
		payload := noise(200 << 20)
		w.Must(os.WriteFile(there, payload, 0o600))
		sum := fmt.Sprintf("%x", sha256.Sum256(payload))

		began := time.Now()
		w.Do("cp", there, pod+":/data/file")
		in := time.Since(began)
		if got := w.Do("exec", pod, "--", "sha256sum", "/data/file"); !strings.HasPrefix(got, sum) {
			w.Errorf("the file in the pod has checksum %s, want %s", got, sum)
		}
		began = time.Now()
		args := []string{"cp", pod + ":/data/file", back}
		if w.Protocol == scene.Websocket {
			args = append(args, "--retries", "5") // see cutByApiserver
		}
		w.Do(args...)
		out := time.Since(began)
		if got := fmt.Sprintf("%x", sha256.Sum256([]byte(scene.ReadFile(w.T, back)))); got != sum {
			w.Errorf("the file that came back has checksum %s, want %s", got, sum)
		}
		w.Logf("200 MiB: %.1f s into the pod, %.1f s out of it", in.Seconds(), out.Seconds())
		w.Delete(pod)
		w.Gone(pod)
	})
}

func TestKubectlDebug(t *testing.T) {
	twoWays(t, func(w way) {
		pod := w.pod("debug", func(p *corev1.Pod) {
			p.Spec.Containers[0].Command = []string{"sleep", "123456"}
		})
		call := w.Terminal(24, 80, "debug", "-it", pod, "--image", world.BusyboxImage, "--target", "main", "--container", "probe", "--", "sh")
		w.Until("the shell answers", func(context.Context) (bool, error) {
			if call.Ended() {
				return false, fmt.Errorf("kubectl debug has ended: %s", call.Out.String())
			}
			call.Type("echo $((6*7))\n")
			return strings.Contains(call.Out.String(), "\n42"), nil
		})
		call.Type("ps\n")
		call.Says("sleep 123456")
		call.Type("exit 3\n")
		call.Wait(scene.Patience)
		w.When(pod, "has an ephemeral container that ended with 3", func(p *corev1.Pod) bool {
			return len(p.Status.EphemeralContainerStatuses) == 1 && p.Status.EphemeralContainerStatuses[0].State.Terminated != nil &&
				p.Status.EphemeralContainerStatuses[0].State.Terminated.ExitCode == 3
		})
		p := w.Get(pod)
		if !world.PodReady(p) || p.Status.ContainerStatuses[0].RestartCount != 0 {
			w.Errorf("after the debugger the pod is %s", p.Status.String())
		}
		w.Must(w.Client.CoreV1().Pods(w.NS).Delete(w.Ctx, pod, metav1.DeleteOptions{}))
	})
}
