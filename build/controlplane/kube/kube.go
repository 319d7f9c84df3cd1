// Package kube runs Kubernetes' own apiserver, controller manager and scheduler inside this
// process.
//
// It owns the arguments that each of the three is given and the order in which their shared,
// process-wide settings (feature gates, warning handler) are fixed. The control plane's front
// door calls Configure once and then runs each part with a context. The package makes no
// certificates, opens no database, and binds no port: all three are handed to it.
package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controllermanageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"github.com/holdfast-edge/holdfast/build/controlplane/pki"
)

// Issuer is what service-account tokens of the cluster say in "iss", and the audience that the
// apiserver accepts.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// anonymous lets load balancers and service managers ask for health without a credential, and
// nobody do anything else without one.
const anonymous = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// Config is what the three parts need to know.
type Config struct {
	Dir       string       // data directory; holds the configuration files written here
	Listener  net.Listener // of the apiserver
	Advertise net.IP       // the apiserver's address in the Service "kubernetes"; loopback publishes none
	// StoreSocket is the datastore's unix socket, relative to the working directory or absolute.
	StoreSocket            string
	ServiceCIDR            string
	NodeMonitorGracePeriod time.Duration
	NodeMonitorPeriod      time.Duration
	Files                  pki.Files
	KubeletCA              string // signs what nodes' kubelet API serves
}

// Components are the three parts, configured.
type Components struct {
	apiserver         *apiserveroptions.ServerRunOptions
	controllerManager *controllermanageroptions.KubeControllerManagerOptions
	scheduler         *scheduleroptions.Options
}

// Configure reads the arguments of all three parts and fixes the settings that they share. It may
// be called once in a process, for Kubernetes keeps those settings globally.
func Configure(c Config) (*Components, error) {
	authentication := filepath.Join(c.Dir, "authentication.yaml")
	if err := pki.WriteFile(authentication, []byte(anonymous)); err != nil {
		return nil, err
	}
	managerConfig := filepath.Join(c.Dir, "controller-manager.kubeconfig")
	schedulerConfig := filepath.Join(c.Dir, "scheduler.kubeconfig")
	local := "https://" + LocalAddress(c.Listener)
	if err := pki.WriteKubeconfig(managerConfig, local, "system:kube-controller-manager", c.Files.CA, c.Files.ControllerManager); err != nil {
		return nil, err
	}
	if err := pki.WriteKubeconfig(schedulerConfig, local, "system:kube-scheduler", c.Files.CA, c.Files.Scheduler); err != nil {
		return nil, err
	}

	manager, err := controllermanageroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("prepare kube-controller-manager: %w", err)
	}
	parts := &Components{
		apiserver:         apiserveroptions.NewServerRunOptions(),
		controllerManager: manager,
		scheduler:         scheduleroptions.NewOptions(),
	}
	if err := parse("kube-apiserver", parts.apiserver.Flags(), apiserverArgs(c, authentication)); err != nil {
		return nil, err
	}
	parts.apiserver.SecureServing.Listener = c.Listener
	managerFlags := manager.Flags(controllermanager.KnownControllers(), controllermanager.ControllersDisabledByDefault(), controllermanager.ControllerAliases())
	if err := parse("kube-controller-manager", managerFlags, controllerManagerArgs(c, managerConfig)); err != nil {
		return nil, err
	}
	if err := parse("kube-scheduler", *parts.scheduler.Flags, schedulerArgs(schedulerConfig)); err != nil {
		return nil, err
	}
	return parts, parts.applyGlobals()
}

// applyGlobals fixes the process-wide settings once for all three parts. Each part's own command
// would do it again, too late for those that already run.
func (p *Components) applyGlobals() error {
	registry := p.apiserver.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return fmt.Errorf("set feature gates: %w", err)
	}
	if gate, ok := registry.FeatureGateFor(basecompatibility.DefaultKubeComponent).(featuregate.MutableFeatureGate); ok {
		gate.AddMetrics()
	}
	registry.AddMetrics()
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	return nil
}

func parse(component string, named cliflag.NamedFlagSets, args []string) error {
	flags := pflag.NewFlagSet(component, pflag.ContinueOnError)
	for _, set := range named.FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("configure %s: %w", component, err)
	}
	return nil
}

// LocalAddress is the host and port at which this process reaches its own apiserver.
func LocalAddress(l net.Listener) string {
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return l.Addr().String()
	}
	host := "127.0.0.1"
	if !tcp.IP.IsUnspecified() {
		host = tcp.IP.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

func apiserverArgs(c Config, authentication string) []string {
	f := c.Files
	args := []string{
		"--etcd-servers=unix://" + c.StoreSocket,
		// kine bounds its own size; counting objects every minute would only cost queries.
		"--etcd-count-metric-poll-period=0",
		"--etcd-db-metric-poll-interval=0",
		"--advertise-address=" + c.Advertise.String(),
		"--service-cluster-ip-range=" + c.ServiceCIDR,
		"--tls-cert-file=" + f.Serving.Cert,
		"--tls-private-key-file=" + f.Serving.Key,
		"--tls-min-version=VersionTLS12",
		"--client-ca-file=" + f.CA.Cert,
		"--authentication-config=" + authentication,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--profiling=false",
		"--service-account-issuer=" + Issuer,
		"--service-account-signing-key-file=" + f.ServiceAccount.Key,
		"--service-account-key-file=" + f.ServiceAccount.Cert,
		"--requestheader-client-ca-file=" + f.FrontProxyCA.Cert,
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + f.FrontProxyClient.Cert,
		"--proxy-client-key-file=" + f.FrontProxyClient.Key,
		// No kube-proxy runs beside it: what serves an APIService (metrics-server, say) is dialled
		// at its endpoint, not at the Service's address.
		"--enable-aggregator-routing=true",
		"--kubelet-client-certificate=" + f.KubeletClient.Cert,
		"--kubelet-client-key=" + f.KubeletClient.Key,
		"--kubelet-certificate-authority=" + c.KubeletCA,
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
	}
	if c.Advertise.IsLoopback() {
		// Kubernetes refuses endpoints on loopback: without another address there are none.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	return args
}

func controllerManagerArgs(c Config, kubeconfig string) []string {
	f := c.Files
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--secure-port=0",
		"--leader-elect=false",
		"--profiling=false",
		"--use-service-account-credentials=true",
		"--root-ca-file=" + f.CA.Cert,
		"--service-account-private-key-file=" + f.ServiceAccount.Key,
		"--cluster-signing-cert-file=" + f.CA.Cert,
		"--cluster-signing-key-file=" + f.CA.Key,
		"--node-monitor-grace-period=" + c.NodeMonitorGracePeriod.String(),
		"--node-monitor-period=" + c.NodeMonitorPeriod.String(),
		// The apiserver is in the same process; its own fairness bounds the load.
		"--kube-api-qps=100",
		"--kube-api-burst=200",
		"--concurrent-gc-syncs=5",
		"--concurrent-namespace-syncs=4",
		"--concurrent-endpoint-syncs=2",
		"--concurrent-service-endpoint-syncs=2",
		"--concurrent-resource-quota-syncs=2",
		"--concurrent-replicaset-syncs=3",
	}
}

func schedulerArgs(kubeconfig string) []string {
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--secure-port=0",
		"--leader-elect=false",
		"--profiling=false",
		"--kube-api-qps=100",
		"--kube-api-burst=200",
	}
}

// RunAPIServer serves until ctx ends and open requests have been answered.
func (p *Components) RunAPIServer(ctx context.Context) error {
	completed, err := p.apiserver.Complete(ctx)
	if err != nil {
		return fmt.Errorf("configure kube-apiserver: %w", err)
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return fmt.Errorf("configure kube-apiserver: %w", utilerrors.NewAggregate(errs))
	}
	return finish(ctx, "kube-apiserver", apiserver.Run(ctx, completed))
}

// RunControllerManager runs the controllers until ctx ends. The apiserver must be ready.
func (p *Components) RunControllerManager(ctx context.Context) error {
	config, err := p.controllerManager.Config(ctx, controllermanager.KnownControllers(), controllermanager.ControllersDisabledByDefault(), controllermanager.ControllerAliases())
	if err != nil {
		return fmt.Errorf("configure kube-controller-manager: %w", err)
	}
	return finish(ctx, "kube-controller-manager", controllermanager.Run(ctx, config.Complete()))
}

// RunScheduler places pods until ctx ends. The apiserver must be ready.
func (p *Components) RunScheduler(ctx context.Context) error {
	config, s, err := scheduler.Setup(ctx, p.scheduler)
	if err != nil {
		return fmt.Errorf("configure kube-scheduler: %w", err)
	}
	return finish(ctx, "kube-scheduler", scheduler.Run(ctx, config, s))
}

// finish tells a wanted end from an unwanted one: after ctx has ended, whatever a part says about
// its end is not an error, and before, even silence is.
func finish(ctx context.Context, component string, err error) error {
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		err = errors.New("it ended by itself")
	}
	return fmt.Errorf("%s stopped: %w", component, err)
}
