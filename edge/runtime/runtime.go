package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DefaultEndpoint is where containerd listens when nothing else is configured.
const DefaultEndpoint = "unix:///run/containerd/containerd.sock"

// ErrNotFound is wrapped when the runtime knows no sandbox, container or image by the given name.
var ErrNotFound = errors.New("the container runtime does not know it")

// ErrUnavailable is wrapped when containerd does not answer at all: it is down, restarting, or not ready yet.
var ErrUnavailable = errors.New("the container runtime does not answer")

// State is what a container is doing.
type State string

// The states of a container, as CRI counts them.
const (
	Created State = "Created"
	Running State = "Running"
	Exited  State = "Exited"
	Unknown State = "Unknown"
)

// Info says which runtime answers and whether it can run pods.
type Info struct {
	Name         string // containerd
	Version      string // v1.7.24
	APIVersion   string // v1
	CgroupDriver string // cgroupfs, systemd, or "" when the runtime does not tell
	Ready        bool
	NetworkReady bool   // a CNI configuration is loaded
	Reason       string // why it is not ready; empty when it is
}

// Runtime is a connection to one containerd. It is safe for use by many goroutines.
type Runtime struct {
	endpoint       string
	log            *slog.Logger
	conn           *grpc.ClientConn
	runtime        cri.RuntimeServiceClient
	images         cri.ImageServiceClient
	memoryTotal    int64 // bytes of memory of this node: OOM scores are worked out from it
	unified        bool  // cgroup v2
	swapAccounting bool

	mu         sync.Mutex                      // guards the three maps below
	containers map[string]*cri.ContainerStatus // last status of containers whose state cannot change any more
	sandboxes  map[string]*cri.PodSandboxStatus
	registries map[string]reach // what was found out about registries' reachability
}

// Dial connects to the runtime at endpoint (unix:///path) and makes sure that it answers CRI v1. It does not wait: when
// containerd is down the error wraps ErrUnavailable and the caller decides when to try again.
func Dial(ctx context.Context, endpoint string, log *slog.Logger) (*Runtime, error) {
	if endpoint == "" {
		endpoint = DefaultEndpoint
	}
	if !strings.HasPrefix(endpoint, "unix://") {
		return nil, fmt.Errorf("container runtime endpoint %q: it must be of the form unix:///path/to/containerd.sock", endpoint)
	}
	total, err := memoryTotal("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	// One connection, small buffers: a Pi pays for each of them for as long as edgecore lives.
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(),
		grpc.WithUnaryInterceptor(bounded),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithReadBufferSize(4<<10),
		grpc.WithWriteBufferSize(4<<10),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
	)
	if err != nil {
		return nil, fmt.Errorf("container runtime endpoint %q: %w", endpoint, err)
	}
	tree := cgroupTree{mount: cgroupMount, unified: isUnified(cgroupMount)}
	r := &Runtime{
		endpoint:       endpoint,
		log:            log,
		conn:           conn,
		runtime:        cri.NewRuntimeServiceClient(conn),
		images:         cri.NewImageServiceClient(conn),
		memoryTotal:    total,
		unified:        tree.unified,
		swapAccounting: tree.swapAccounting(),
		containers:     map[string]*cri.ContainerStatus{},
		sandboxes:      map[string]*cri.PodSandboxStatus{},
		registries:     map[string]reach{},
	}
	if _, err := r.version(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

// bounded gives each call the time that a kubelet gives it: a network plugin or a shim that hangs must not take a place
// among the starts for ever, nor keep a pod from being looked at. Calls may take less by their own context.
func bounded(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if most := callPatience(path.Base(method)); most > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, most)
		defer cancel()
	}
	return call(ctx, method, req, reply, conn, opts...)
}

// callPatience is the longest that a call may take; 0 is as long as its caller says.
func callPatience(call string) time.Duration {
	switch call {
	case "PullImage", "ExecSync", "StopContainer":
		return 0
	case "RunPodSandbox":
		return 4 * time.Minute
	}
	return 2 * time.Minute
}

// Close ends the connection. Containers go on running.
func (r *Runtime) Close() error { return r.conn.Close() }

func (r *Runtime) version(ctx context.Context) (*cri.VersionResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	v, err := r.runtime.Version(ctx, &cri.VersionRequest{})
	if err == nil {
		return v, nil
	}
	if status.Code(err) == codes.Unimplemented {
		return nil, fmt.Errorf("container runtime at %s does not serve CRI v1: enable containerd's cri plugin "+
			"(remove \"cri\" from disabled_plugins in /etc/containerd/config.toml) or install containerd 1.6 or newer: %w", r.endpoint, ErrUnavailable)
	}
	return nil, fmt.Errorf("container runtime at %s: %w", r.endpoint, wrap(err))
}

// Info asks the runtime what it is and whether it is ready.
func (r *Runtime) Info(ctx context.Context) (Info, error) {
	v, err := r.version(ctx)
	if err != nil {
		return Info{}, err
	}
	info := Info{Name: v.RuntimeName, Version: v.RuntimeVersion, APIVersion: v.RuntimeApiVersion}
	st, err := r.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return info, fmt.Errorf("status of container runtime at %s: %w", r.endpoint, wrap(err))
	}
	var reasons []string
	for _, c := range st.GetStatus().GetConditions() {
		switch c.Type {
		case cri.RuntimeReady:
			info.Ready = c.Status
		case cri.NetworkReady:
			info.NetworkReady = c.Status
		default:
			continue
		}
		if !c.Status {
			reasons = append(reasons, strings.TrimSuffix(c.Type+": "+c.Reason+": "+c.Message, ": "))
		}
	}
	info.Reason = strings.Join(reasons, "; ")
	// RuntimeConfig came with containerd 2.0; of an older one the plugin's own configuration tells the driver.
	cfg, err := r.runtime.RuntimeConfig(ctx, &cri.RuntimeConfigRequest{})
	switch {
	case err == nil && cfg.GetLinux() != nil:
		info.CgroupDriver = driverName(cfg.Linux.CgroupDriver == cri.CgroupDriver_SYSTEMD)
	case err == nil || status.Code(err) == codes.Unimplemented:
		plugin := r.pluginConfig(ctx)
		if rt, ok := plugin.Containerd.Runtimes[plugin.Containerd.DefaultRuntimeName]; ok {
			info.CgroupDriver = driverName(rt.Options.SystemdCgroup || plugin.SystemdCgroup)
		}
	default:
		return info, fmt.Errorf("configuration of container runtime at %s: %w", r.endpoint, wrap(err))
	}
	return info, nil
}

func driverName(systemd bool) string {
	if systemd {
		return "systemd"
	}
	return "cgroupfs"
}

// pluginConfig is what containerd's CRI plugin tells of its configuration, as far as it is of use here. The form is
// containerd's own; what is missing stays empty.
type pluginConfig struct {
	SystemdCgroup bool `json:"systemdCgroup"`
	Containerd    struct {
		DefaultRuntimeName string `json:"defaultRuntimeName"`
		Runtimes           map[string]struct {
			Options struct{ SystemdCgroup bool }
		} `json:"runtimes"`
	} `json:"containerd"`
	SandboxImage string `json:"sandboxImage"` // up to 1.7
	CNI          struct {
		ConfDir string `json:"confDir"`
	} `json:"cni"`
	Registry struct {
		ConfigPath string                     `json:"configPath"`
		Mirrors    map[string]json.RawMessage `json:"mirrors"`
	} `json:"registry"`
}

func (r *Runtime) pluginConfig(ctx context.Context) pluginConfig {
	var out pluginConfig
	resp, err := r.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return out
	}
	if err := json.Unmarshal([]byte(resp.Info["config"]), &out); err != nil {
		r.log.Debug("configuration of the container runtime is not understood", "endpoint", r.endpoint, "error", err)
		return pluginConfig{}
	}
	return out
}

// wrap turns what a gRPC code says into our own errors, so that callers need not know gRPC.
func wrap(err error) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.NotFound:
		return &callError{kind: ErrNotFound, text: status.Convert(err).Message()}
	case codes.Unavailable:
		return &callError{kind: ErrUnavailable, text: status.Convert(err).Message()}
	case codes.DeadlineExceeded:
		return &callError{kind: context.DeadlineExceeded, text: status.Convert(err).Message()}
	case codes.Canceled:
		return &callError{kind: context.Canceled, text: status.Convert(err).Message()}
	default:
		return errors.New(status.Convert(err).Message())
	}
}

// callError keeps the runtime's own words in front of the class that a program decides by.
type callError struct {
	kind error
	text string
}

func (e *callError) Error() string {
	if e.text == "" {
		return e.kind.Error()
	}
	return e.kind.Error() + ": " + e.text
}

func (e *callError) Unwrap() error { return e.kind }

// memoryTotal reads MemTotal, in bytes.
func memoryTotal(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("size of this node's memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil && kib > 0 {
				return kib << 10, nil
			}
		}
	}
	return 0, fmt.Errorf("size of this node's memory: %s has no MemTotal", path)
}
