package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

// Floor measures what nothing that drives this containerd can beat: RunPodSandbox, CreateContainer and
// StartContainer for n pods of one busybox container each, on the pods' network if there is one, so many
// at a time. The busybox image must have been imported. The pods are removed before it returns; the time
// that takes is not part of the result.
func Floor(ctx context.Context, c *Containerd, n, parallel int) (d time.Duration, err error) {
	logs, err := os.MkdirTemp(c.place.Dir, "floor-logs-")
	if err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(logs)) }()
	sandboxes := make([]string, n)

	begin := time.Now()
	starts, startCtx := errgroup.WithContext(ctx)
	starts.SetLimit(parallel)
	for i := range n {
		starts.Go(func() (err error) {
			sandboxes[i], err = c.floorPod(startCtx, "floor-"+strconv.Itoa(i), logs)
			return err
		})
	}
	err = starts.Wait()
	d = time.Since(begin)

	var removals errgroup.Group
	removals.SetLimit(parallel)
	for _, id := range sandboxes {
		if id != "" {
			removals.Go(func() error { return c.removePod(ctx, id) })
		}
	}
	if err := errors.Join(err, removals.Wait()); err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	return d, nil
}

// floorPod starts one pod. The sandbox's id is returned also with an error, when there is a sandbox.
func (c *Containerd) floorPod(ctx context.Context, name, logs string) (sandbox string, err error) {
	cri := c.CRI()
	// The same namespaces as an ordinary pod's: those of network and IPC its own, that of processes each
	// container's.
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "floor", Uid: name},
		Hostname:     name,
		LogDirectory: logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: c.place.CgroupParent + "/pod" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	if !c.opts.CNI {
		config.Hostname = ""
		config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	}
	run, err := cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", fmt.Errorf("run sandbox of pod %s: %w", name, err)
	}
	created, err := cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  run.PodSandboxId,
		SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: image.BusyboxName},
			Command:  []string{"sleep", "86400"},
			LogPath:  name + ".log",
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions,
			}},
		},
	})
	if err != nil {
		return run.PodSandboxId, fmt.Errorf("create container of pod %s: %w", name, err)
	}
	if _, err := cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return run.PodSandboxId, fmt.Errorf("start container of pod %s: %w", name, err)
	}
	return run.PodSandboxId, nil
}

func (c *Containerd) removePod(ctx context.Context, sandbox string) error {
	cri := c.CRI()
	if _, err := cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", sandbox, err)
	}
	if _, err := cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", sandbox, err)
	}
	return nil
}
