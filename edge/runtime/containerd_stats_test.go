package runtime_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

func (n *node) usage(t *testing.T) {
	began := time.Now()
	r := n.run(t, newPod("busy", "sh", "-c", "head -c 8000000 /dev/zero >/big; while :; do :; done"))
	id := r.start(t)
	idle := n.run(t, newPod("ended", "true"))
	idle.exited(t, idle.start(t))
	find := func() (*runtime.Usage, error) {
		list, err := n.rt.Usage(t.Context())
		if err != nil {
			return nil, err
		}
		var found *runtime.Usage
		for i := range list {
			switch list[i].PodUID {
			case string(r.pod.UID):
				found = &list[i]
			case string(idle.pod.UID):
				return nil, fmt.Errorf("a container that has ended is told of: %+v", list[i])
			}
		}
		if found == nil || found.CPU == nil || found.WorkingSet == nil || *found.CPU == 0 {
			return nil, errors.New("not yet")
		}
		return found, nil
	}
	var first runtime.Usage
	eventually(t, "the container's figures", func() error {
		u, err := find()
		if err == nil {
			first = *u
		}
		return err
	})
	if first.ID != id || first.Name != "main" || first.Pod != "busy" || first.Namespace != "ns" || first.Image == "" {
		t.Errorf("usage %+v, want it named as the container is", first)
	}
	if first.StartedAt.Before(began) || first.CPUTime.Before(first.StartedAt) || first.CPUTime.After(time.Now()) {
		t.Errorf("started at %s, read at %s", first.StartedAt, first.CPUTime)
	}
	if *first.WorkingSet < 4096 || *first.WorkingSet > 64<<20 {
		t.Errorf("working set of %d bytes", *first.WorkingSet)
	}
	eventually(t, "figures grow", func() error {
		u, err := find()
		switch {
		case err != nil:
			return err
		case *u.CPU <= *first.CPU || !u.CPUTime.After(first.CPUTime):
			return fmt.Errorf("CPU %d at %s, was %d at %s", *u.CPU, u.CPUTime, *first.CPU, first.CPUTime)
		case u.Layer == nil || u.Layer.Bytes == nil || *u.Layer.Bytes < 8_000_000 || u.Layer.MountPoint == "":
			return fmt.Errorf("file system: %+v, want 8 MB at least", u.Layer) // containerd looks every 10 s
		}
		return nil
	})
	images, err := n.rt.ImageUsage(t.Context())
	if err != nil || images.Bytes == nil || *images.Bytes == 0 || images.MountPoint == "" {
		t.Errorf("images: %+v, %v", images, err)
	}
}
