package adm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/build/systemd"
	"github.com/holdfast-edge/holdfast/common/adm/checklist"
	"github.com/holdfast-edge/holdfast/common/adm/machine"
)

// Space on the disk that a data directory should have, and must have.
const (
	wishedSpace = 1 << 30
	neededSpace = 200 << 20
)

// firstYear is before this program was written: a clock that shows less is wrong.
const firstYear = 2025

// checks are what init looks at before it changes anything.
func (in *initialization) checks() []checklist.Check {
	list := []checklist.Check{
		{Name: "user", Run: func(context.Context) checklist.Result { return checkUser(in.o.Foreground) }},
		{Name: "systemd", Run: func(context.Context) checklist.Result { return in.checkSystemd(in.o.Foreground) }},
		{Name: "programs", Run: in.checkPrograms},
		{Name: "clock", Run: func(context.Context) checklist.Result { return checkYear() }},
		{Name: "disk", Run: func(context.Context) checklist.Result { return checkDisk(in.config.DataDir) }},
		{Name: "address", Run: in.checkAddress},
		{Name: "ports", Run: in.checkPorts},
	}
	if in.journal.ControlPlaneDir == "" {
		list = append(list, checklist.Check{Name: "cluster", Run: in.checkCluster})
	}
	return list
}

func checkUser(foreground bool) checklist.Result {
	switch {
	case os.Geteuid() == 0:
		return checklist.Good("running as root")
	case foreground:
		return checklist.Doubt("if a file or port is refused, run it with sudo", "not running as root")
	}
	return checklist.Bad("run it again with sudo", "not running as root: systemd units and /etc/holdfast need it")
}

func (a *App) checkSystemd(foreground bool) checklist.Result {
	switch {
	case foreground:
		return checklist.Good("not used: --foreground")
	case a.Machine.Systemd():
		return checklist.Good("runs this machine")
	}
	return checklist.Bad("add --foreground, and have your own service manager run the command", "systemd does not run this machine")
}

func (in *initialization) checkPrograms(context.Context) checklist.Result {
	names := []string{"cloudcore"}
	if in.journal.ControlPlaneDir != "" {
		names = append(names, "controlplane")
	}
	for _, name := range names {
		if _, err := in.binary(name); err != nil {
			return checklist.Bad("`make build` makes all of them in _output", "%v", err)
		}
	}
	return checklist.Good("%d found", len(names))
}

// checkYear is a doubt only: what was made before must start whatever the clock
// says, and what is made new says so itself where it fails.
func checkYear() checklist.Result {
	now := time.Now().UTC()
	if now.Year() < firstYear {
		return checklist.Doubt("set the clock (`timedatectl set-ntp true`, or `date -s`)", "the clock shows %s: new certificates would carry that", now.Format(time.DateTime))
	}
	return checklist.Good("shows %s UTC", now.Format(time.DateTime))
}

func checkDisk(dir string) checklist.Result {
	free, err := machine.FreeSpace(dir)
	switch {
	case err != nil:
		return checklist.Bad("choose another folder with --data-dir", "%v", err)
	case free < neededSpace:
		return checklist.Bad("make room, or choose another disk with --data-dir", "%d MiB free for %s, %d are needed", free>>20, dir, neededSpace>>20)
	case free < wishedSpace:
		return checklist.Doubt("make room soon", "%d MiB free for %s", free>>20, dir)
	}
	return checklist.Good("%.1f GiB free for %s", float64(free)/(1<<30), dir)
}

func (in *initialization) checkAddress(context.Context) checklist.Result {
	if len(in.config.AdvertiseAddresses) == 0 {
		return checklist.Bad("say how edges reach this machine with --advertise-address", "this machine has no address but loopback")
	}
	return checklist.Good("edges will dial %s", advertised(in.config))
}

// checkPorts tries the ports, except those of units that run already.
func (in *initialization) checkPorts(ctx context.Context) checklist.Result {
	type taker struct{ address, flag, unit string }
	wanted := []taker{{in.config.Listen, "--listen", systemd.Cloudcore}, {in.config.HealthListen, "--health-listen", systemd.Cloudcore}}
	if in.journal.ControlPlaneDir != "" {
		wanted = append(wanted, taker{in.journal.ControlPlaneListen, "--control-plane-listen", systemd.ControlPlane})
	}
	for _, w := range wanted {
		if !in.o.Foreground && in.Machine.UnitActive(ctx, w.unit) {
			continue
		}
		l, err := net.Listen("tcp", w.address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return checklist.Bad("stop that program (`ss -ltnp` names it; it may be an earlier `holdfast init --foreground`), or choose another with "+w.flag, "port %d is taken by another program", port(w.address))
		}
		if err != nil {
			return checklist.Bad("choose another address with "+w.flag, "%v", err)
		}
		l.Close()
	}
	if to := in.config.FleetListen; to != "" && (in.o.Foreground || !in.Machine.UnitActive(ctx, systemd.Cloudcore)) {
		l, err := net.Listen("tcp", to)
		if err != nil {
			return checklist.Doubt("stop that program, or set another fleetListen in "+in.o.Config, "the fleet's web page cannot be served at %s: %v", to, err)
		}
		l.Close()
	}
	return checklist.Good("free")
}

func (in *initialization) checkCluster(ctx context.Context) checklist.Result {
	const remedy = "check --kubeconfig: `kubectl --kubeconfig FILE get nodes` must work from here"
	admin, err := clientcmd.BuildConfigFromFlags("", in.journal.Kubeconfig)
	if err != nil {
		return checklist.Bad(remedy, "kubeconfig %s: %v", in.journal.Kubeconfig, err)
	}
	admin.Timeout = 15 * time.Second
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return checklist.Bad(remedy, "kubeconfig %s: %v", in.journal.Kubeconfig, err)
	}
	v, err := client.Discovery().ServerVersion()
	if err != nil {
		return checklist.Bad(remedy, "the cluster at %s: %v", admin.Host, err)
	}
	if problem := checkVersion(v); problem != nil {
		return *problem
	}
	if problem := checkAuthorizers(ctx, client); problem != nil {
		return *problem
	}
	return checklist.Good("Kubernetes %s at %s", v.GitVersion, admin.Host)
}

// checkVersion: without admission policies, which came with 1.30, a node could write
// the status of another's devices; without selectable fields of custom resources,
// which came with 1.31, a hub could not ask for the devices of a node.
func checkVersion(v *version.Info) *checklist.Result {
	const oldest = 31
	major, errMajor := strconv.Atoi(v.Major)
	minor, errMinor := strconv.Atoi(strings.TrimRight(v.Minor, "+")) // some clouds add one
	if errMajor != nil || errMinor != nil || major > 1 || minor >= oldest {
		return nil // what cannot be read is left to the apiserver
	}
	r := checklist.Bad(fmt.Sprintf("bring it to Kubernetes 1.%d or later", oldest), "the cluster runs Kubernetes %s, which has no selectable fields of custom resources", v.GitVersion)
	return &r
}

// checkAuthorizers asks what a node of no importance may do: the safety of every
// Secret rests on the Node authorizer, and so does a node's own registration.
func checkAuthorizers(ctx context.Context, client kubernetes.Interface) *checklist.Result {
	const node = "holdfast-preflight"
	may := func(verb, resource string) (bool, error) {
		review, err := client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User: "system:node:" + node, Groups: []string{"system:nodes", "system:authenticated"},
				ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: resource, Namespace: metav1.NamespaceSystem, Name: node, Version: "v1"},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		return review.Status.Allowed, nil
	}
	const remedy = "the apiserver must run with --authorization-mode=Node,RBAC"
	readsSecrets, err := may("get", "secrets")
	if err != nil {
		r := checklist.Bad("init needs a kubeconfig with the rights of a cluster administrator", "who may do what in the cluster: %v", err)
		return &r
	}
	if readsSecrets {
		r := checklist.Bad(remedy, "this cluster lets every node read every Secret")
		return &r
	}
	registers, err := may("create", "nodes")
	if err != nil || !registers {
		r := checklist.Bad(remedy, "this cluster does not let a node register itself")
		return &r
	}
	return nil
}
