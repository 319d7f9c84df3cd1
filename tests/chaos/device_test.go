package chaos

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// aMeter makes a device that counts, and waits until the node knows it.
func aMeter(s *scene.Scene, n *world.Node) {
	s.CreateObject("devicemodels", "meter", `{"properties": [{"name": "count", "type": "INT", "accessMode": "ReadOnly"}]}`)
	s.CreateObject("devices", "meter", fmt.Sprintf(`{"deviceModelRef": {"name": "meter"}, "nodeName": %q, "properties": [{"name": "count", "history": {"limit": 1000}}]}`, n.Name))
	s.Until("the node knows the meter", func(context.Context) (bool, error) {
		d, err := s.LocalDevice(n, "meter")
		return err == nil && len(d.Properties) > 0, err
	})
}

func TestWhatADeviceWasAnsweredSurvivesKills(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("dev-kill", world.NodeOptions{})
	aMeter(s, n)
	s.Must(n.Cut())
	answered := 0
	for round := range 5 {
		killed := make(chan error, 1)
		for i := range 200 {
			if i == 100+7*round {
				go func() { killed <- n.KillEdgecore() }()
			}
			status, _, err := s.Local(n, http.MethodPost, "meter/report", fmt.Sprintf(`{"count": %d}`, answered+1))
			if err != nil { // it may have been stored all the same: the device says it again
				break
			}
			if status != http.StatusOK {
				t.Fatalf("update %d: status %d", answered+1, status)
			}
			answered++
		}
		s.Must(<-killed)
		s.Must(n.StartEdgecore())
		s.Until("edgecore answers again", func(context.Context) (bool, error) {
			d, err := s.LocalDevice(n, "meter")
			if err != nil || len(d.Properties) == 0 {
				return false, err
			}
			if got := *d.Properties[0].Reported; got != fmt.Sprint(answered) && got != fmt.Sprint(answered+1) {
				t.Fatalf("round %d: the meter shows %s, %d was answered", round, got, answered)
			}
			return true, nil
		})
	}
	s.Must(n.Mend())
	d := s.Device("meter", "all values", func(d *v1beta1.Device) bool {
		history := scene.TwinOf(d, "count").History
		last, err := strconv.Atoi(scene.Reported(d, "count"))
		return err == nil && last >= answered && history[len(history)-1].Value == fmt.Sprint(last)
	})
	// Each value once, or twice where the answer was lost; none is missing.
	next := 1
	for _, v := range scene.TwinOf(d, "count").History {
		switch v.Value {
		case fmt.Sprint(next):
			next++
		case fmt.Sprint(next - 1):
		default:
			t.Fatalf("after %d comes %s", next-1, v.Value)
		}
	}
	if next <= answered {
		t.Errorf("%d values were answered, %d have come", answered, next-1)
	}
}

func TestADeviceOnAFullDiskIsToldSoAndPodsGoOn(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("dev-full", world.NodeOptions{NoJoin: true})
	s.Must(os.MkdirAll(n.DataDir(), 0o700))
	s.Must(syscall.Mount("tmpfs", n.DataDir(), "tmpfs", 0, "size=8m"))
	s.Must(n.Join(s.Ctx, "--ignore-preflight-errors", "disk"))
	s.Start("web", n, nil)
	before := s.Running(n)["web/main"]
	aMeter(s, n)
	if status, answer, err := s.Local(n, http.MethodPost, "meter/report", `{"count": 0}`); err != nil || status != http.StatusOK {
		t.Fatalf("before the disk is full: %d, %s, %v", status, answer, err)
	}
	ballast := filepath.Join(n.DataDir(), "ballast")
	s.Must(fill(ballast))
	count := 0
	s.Until("the meter is told that the disk is full", func(context.Context) (bool, error) {
		count++
		status, answer, err := s.Local(n, http.MethodPost, "meter/report", fmt.Sprintf(`{"count": %d}`, count))
		if status == http.StatusOK {
			return false, nil
		}
		if err == nil && (status != http.StatusInsufficientStorage || !strings.Contains(answer, "full")) {
			t.Fatalf("status %d, %s", status, answer)
		}
		return err == nil, err
	})
	if d, err := s.LocalDevice(n, "meter"); err != nil || *d.Properties[0].Reported != fmt.Sprint(count-1) {
		t.Errorf("the meter shows %+v, %v; %d was the last that was answered", d.Properties, err, count-1)
	}
	if after := s.Running(n)["web/main"]; after.ID != before.ID {
		t.Errorf("pod web was rebuilt: container %q, was %q", after.ID, before.ID)
	}
	s.Must(os.Remove(ballast))
	s.Until("the meter is heard again", func(context.Context) (bool, error) {
		status, _, err := s.Local(n, http.MethodPost, "meter/report", `{"count": 1000000}`)
		return status == http.StatusOK, err
	})
	s.Device("meter", "the last value", func(d *v1beta1.Device) bool { return scene.Reported(d, "count") == "1000000" })
	if p := s.Ready("web"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("pod web has %d restarts, want 0", p.Status.ContainerStatuses[0].RestartCount)
	}
}
