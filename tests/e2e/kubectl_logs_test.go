package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// touch makes a file in a container, by which a test tells its script to go on.
func (w way) touch(pod, file string) {
	w.Helper()
	w.Do("exec", pod, "-c", "main", "--", "touch", file)
}

func TestKubectlLogs(t *testing.T) {
	twoWays(t, func(w way) {
		pod := w.pod("logs", func(p *corev1.Pod) {
			p.Spec.Containers[0].Command = scene.Shell(`
				test -e /life/first || { touch /life/first; echo first life; exit 1; }
				for i in 1 2 3 4 5; do echo old $i; done
				while ! test -e /go; do sleep 0.1; done
				echo new 1; echo new 2 >&2
				while ! test -e /end; do sleep 0.1; done
				echo last; sleep 100000`)
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "life", MountPath: "/life"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "life", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
				Name: "side", Image: world.BusyboxImage, Command: scene.Shell("echo beside; sleep 100000"),
			})
		})
		w.ReadyAfter(pod, 1)
		logs := func(args ...string) string {
			w.Helper()
			return w.Do(append([]string{"logs", pod, "-c", "main"}, args...)...)
		}
		expect := func(want string, args ...string) {
			w.Helper()
			if got := logs(args...); got != want {
				w.Errorf("logs %s: %q, want %q", strings.Join(args, " "), got, want)
			}
		}
		w.Until("the container has said all", func(context.Context) (bool, error) { return strings.Count(logs(), "\n") == 5, nil })
		old := "old 1\nold 2\nold 3\nold 4\nold 5\n"
		expect(old)
		expect("first life\n", "--previous")
		expect("old 4\nold 5\n", "--tail", "2")
		expect("", "--tail", "0")
		expect(old, "--tail", "-1")
		expect(old[:10], "--limit-bytes", "10")
		expect(old, "--since", "1h")

		// With timestamps, of which each is the start of a --since-time.
		stamped := strings.Split(strings.TrimSpace(logs("--timestamps")), "\n")
		for i, line := range stamped {
			stamp, text, _ := strings.Cut(line, " ")
			at, err := time.Parse(time.RFC3339Nano, stamp)
			if err != nil || text != fmt.Sprintf("old %d", i+1) || time.Since(at).Abs() > time.Hour {
				w.Errorf("logs --timestamps: line %d is %q", i+1, line)
			}
		}
		at, _, _ := strings.Cut(stamped[0], " ")
		began, err := time.Parse(time.RFC3339Nano, at)
		w.Must(err)

		follower := w.Call(nil, "logs", "-f", pod, "-c", "main", "--tail", "1")
		follower.Says("old 5")
		const apart = 15 * time.Second // which --since tells, on a busy machine too
		w.Until("what is old is old enough", func(context.Context) (bool, error) { return time.Since(began) > apart+5*time.Second, nil })
		now := time.Now().Add(-time.Second)
		w.touch(pod, "/go")
		follower.Says("new 2")
		w.Until("what is new is all that is new", func(context.Context) (bool, error) {
			seconds := strconv.Itoa(min(int(time.Since(now).Seconds()), int(apart.Seconds())) + 2)
			out := logs("--since", seconds+"s")
			return out == "new 1\nnew 2\n" || out == "new 2\nnew 1\n", nil
		})
		expect(logs("--since", strconv.Itoa(int(time.Since(now).Seconds())+1)+"s"), "--since-time", now.UTC().Format(time.RFC3339))
		if out := logs("--since-time", now.UTC().Format(time.RFC3339), "--tail", "1"); out != "new 2\n" && out != "new 1\n" {
			w.Errorf("logs --since-time --tail 1: %q", out)
		}

		all := w.Do("logs", pod, "--all-containers", "--prefix")
		if !strings.Contains(all, "/main] old 1") || !strings.Contains(all, "/side] beside") {
			w.Errorf("logs --all-containers --prefix: %q", all)
		}
		both := w.Call(nil, "logs", "-f", pod, "--all-containers", "--max-log-requests", "5")
		both.Says("beside")
		both.Says("old 5")

		w.touch(pod, "/end")
		follower.Says("last")
		both.Says("last")
		w.Delete(pod)
		for _, call := range []*scene.Call{follower, both} {
			if code := call.Wait(scene.Patience); code != 0 {
				w.Errorf("logs -f of a pod that ends: exit code %d: %s", code, call.Err.String())
			}
		}
		if got, want := strings.Count(follower.Out.String(), "\n"), 4; got != want {
			w.Errorf("logs -f --tail 1 gave %d lines, want %d: %q", got, want, follower.Out.String())
		}

		for what, args := range map[string][]string{
			"a pod that is not there":       {"logs", "no-such-pod"},
			"a container that is not there": {"logs", w.pod("other", nil), "-c", "nobody"},
			"a life that never was":         {"logs", w.pod("young", nil), "--previous"},
		} {
			if out, said, code := w.Run(nil, args...); code == 0 || said == "" {
				w.Errorf("%s: exit code %d, %q, %q", what, code, out, said)
			}
		}
	})
}

// TestKubectlFollowsLogsThroughRotation: edgecore renames a log that has grown, as the kubelet does.
func TestKubectlFollowsLogsThroughRotation(t *testing.T) {
	twoWays(t, func(w way) {
		const lines = 360_000 // of some 98 bytes in the runtime's file: each third makes it worth rotating
		pod := w.pod("rotated", func(p *corev1.Pod) {
			p.Spec.Containers[0].Command = scene.Shell(fmt.Sprintf(`
				while ! test -e /go; do sleep 0.1; done
				for part in 0 1 2; do
					awk -v from=$((part*%[1]d)) 'BEGIN { for (i = from+1; i <= from+%[1]d; i++) printf "line %%06d, which is fifty-one characters in length....\n", i }'
					while ! test -e /next$part; do sleep 0.1; done
				done
				sleep 100000`, lines/3))
		})
		follower := w.Call(nil, "logs", "-f", pod)
		w.touch(pod, "/go")
		for part := 1; part <= 3; part++ {
			follower.SaysLast(fmt.Sprintf("line %06d,", part*lines/3))
			if part < 3 {
				w.Until("the log is rotated", func(context.Context) (bool, error) {
					files, err := filepath.Glob(filepath.Join(w.node.PodLogs(), w.NS+"_"+pod+"_*", "main", "0.log.*"))
					return len(files) >= part, err
				})
			}
			w.touch(pod, fmt.Sprintf("/next%d", part-1))
		}
		next := 1
		for line := range strings.Lines(follower.Out.String()) {
			if want := fmt.Sprintf("line %06d, which is fifty-one characters in length....\n", next); line != want {
				w.Fatalf("logs -f through rotation: line %d is %q", next, line)
			}
			next++
		}
		if next != lines+1 {
			w.Errorf("logs -f through rotation gave %d lines, want %d", next-1, lines)
		}
		if out := w.Do("logs", pod, "--tail", "3"); !strings.HasSuffix(out, fmt.Sprintf("line %06d, which is fifty-one characters in length....\n", lines)) || strings.Count(out, "\n") != 3 {
			w.Errorf("logs --tail 3 after rotation: %q", out)
		}
		w.Delete(pod)
	})
}
