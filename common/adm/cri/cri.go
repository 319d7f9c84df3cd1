// Package cri asks a container runtime, over CRI, what join must know about it,
// and removes for reset the pods that one edge node left in it. common/adm calls
// it. Running pods is not its business: that is edgecore's.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Errors of Look; test with errors.Is.
var (
	ErrNoSocket = errors.New("there is no such socket")
	ErrSilent   = errors.New("nobody answers")
	ErrNoCRI    = errors.New("it does not speak CRI v1")
)

// answerWithin is how long the runtime may take for one answer.
const answerWithin = 10 * time.Second

// Runtime is a connection to a container runtime.
type Runtime struct {
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

// Dial prepares a connection to an endpoint of the form unix:///path.
func Dial(endpoint string) (*Runtime, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("container runtime %s: %w", endpoint, ErrNoSocket)
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: %w", endpoint, err)
	}
	return &Runtime{conn: conn, runtime: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn)}, nil
}

// Close ends the connection.
func (r *Runtime) Close() error { return r.conn.Close() }

// Facts is what a runtime tells about itself. What it does not tell is empty.
type Facts struct {
	Name, Version  string
	Ready          bool
	Reason         string // why it is not ready
	NetworkReady   bool
	NetworkReason  string
	CgroupDriver   string // cgroupfs or systemd
	CgroupTold     bool   // by CRI itself, and not only by the runtime's config
	CNIConfDir     string
	CNIBinDirs     []string
	SandboxImage   string
	SandboxPresent bool
}

// Look asks the runtime.
func (r *Runtime) Look(ctx context.Context) (Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	version, err := r.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	switch status.Code(err) {
	case codes.OK:
	case codes.Unimplemented:
		return Facts{}, ErrNoCRI
	case codes.Unavailable, codes.DeadlineExceeded:
		return Facts{}, fmt.Errorf("%w: %w", ErrSilent, err)
	default:
		return Facts{}, fmt.Errorf("ask the container runtime for its version: %w", err)
	}
	f := Facts{Name: version.RuntimeName, Version: version.RuntimeVersion}
	answer, err := r.runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return f, fmt.Errorf("ask the container runtime for its status: %w", err)
	}
	for _, c := range answer.GetStatus().GetConditions() {
		reason := strings.TrimSpace(c.Reason + " " + c.Message)
		switch c.Type {
		case runtimeapi.RuntimeReady:
			f.Ready, f.Reason = c.Status, reason
		case runtimeapi.NetworkReady:
			f.NetworkReady, f.NetworkReason = c.Status, reason
		}
	}
	f.readConfig(answer.Info["config"])
	// containerd answers this from 2.0 on; before, its own config is all there is.
	if config, err := r.runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil && config.Linux != nil {
		f.CgroupDriver, f.CgroupTold = strings.ToLower(config.Linux.CgroupDriver.String()), true
	}
	if f.SandboxImage != "" {
		found, err := r.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: f.SandboxImage}})
		f.SandboxPresent = err == nil && found.Image != nil
	}
	return f, nil
}

// readConfig takes from containerd's configuration, a JSON text in the status,
// what CRI itself does not tell. Its form is containerd's own affair: what is not
// found stays empty.
func (f *Facts) readConfig(text string) {
	var config struct {
		Containerd struct {
			DefaultRuntimeName string `json:"defaultRuntimeName"`
			Runtimes           map[string]struct {
				Options map[string]any `json:"options"`
			} `json:"runtimes"`
		} `json:"containerd"`
		CNI struct {
			BinDir  string   `json:"binDir"`
			BinDirs []string `json:"binDirs"`
			ConfDir string   `json:"confDir"`
		} `json:"cni"`
		SandboxImage string `json:"sandboxImage"`
	}
	if json.Unmarshal([]byte(text), &config) != nil {
		return
	}
	f.CNIConfDir, f.CNIBinDirs, f.SandboxImage = config.CNI.ConfDir, config.CNI.BinDirs, config.SandboxImage
	if len(f.CNIBinDirs) == 0 && config.CNI.BinDir != "" {
		f.CNIBinDirs = []string{config.CNI.BinDir}
	}
	name := config.Containerd.DefaultRuntimeName
	if name == "" {
		name = "runc"
	}
	if runtime, ok := config.Containerd.Runtimes[name]; ok {
		f.CgroupDriver = "cgroupfs"
		if systemd, _ := runtime.Options["SystemdCgroup"].(bool); systemd {
			f.CgroupDriver = "systemd"
		}
	}
}

// Labels that the kubelet, and so edgecore, puts on sandboxes.
const (
	labelNamespace = "io.kubernetes.pod.namespace"
	labelName      = "io.kubernetes.pod.name"
	labelUID       = "io.kubernetes.pod.uid"
)

// RemovePods stops and removes the sandboxes, with their containers, of the pods
// that ours names by UID. It returns how many pods there were; said is told of
// each.
func (r *Runtime) RemovePods(ctx context.Context, ours func(uid string) bool, said func(pod string)) (int, error) {
	list, err := r.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return 0, fmt.Errorf("list the pods of the container runtime: %w", err)
	}
	pods := map[string]bool{}
	for _, s := range list.Items {
		uid := s.Labels[labelUID]
		if uid == "" || !ours(uid) {
			continue
		}
		pod := s.Labels[labelNamespace] + "/" + s.Labels[labelName]
		if !pods[uid] {
			pods[uid] = true
			said(pod)
		}
		if err := r.removeSandbox(ctx, s.Id); err != nil {
			return len(pods), fmt.Errorf("remove pod %s: %w", pod, err)
		}
	}
	return len(pods), nil
}

func (r *Runtime) removeSandbox(ctx context.Context, id string) error {
	containers, err := r.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id}})
	if err != nil {
		return fmt.Errorf("list its containers: %w", err)
	}
	for _, c := range containers.Containers {
		// Ten seconds to end in good order; then it is killed.
		if _, err := r.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: 10}); err != nil && status.Code(err) != codes.NotFound {
			return fmt.Errorf("stop container %s: %w", c.Metadata.GetName(), err)
		}
	}
	if _, err := r.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	if _, err := r.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}
