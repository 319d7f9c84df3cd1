package adm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/adm/checklist"
	"github.com/holdfast-edge/holdfast/common/adm/cri"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// clockTolerance is how far the clocks of node and hub may be apart unremarked.
const clockTolerance = 2 * time.Minute

// checks are what join looks at before it changes anything.
func (j *joining) checks() []checklist.Check {
	list := []checklist.Check{
		{Name: "user", Run: func(context.Context) checklist.Result { return checkUser(false) }},
		{Name: "systemd", Run: func(context.Context) checklist.Result { return j.checkSystemd(j.o.Foreground) }},
		{Name: "programs", Run: j.checkPrograms},
		{Name: "disk", Run: func(context.Context) checklist.Result { return checkDisk(j.config.DataDir) }},
		{Name: "earlier-join", Run: j.checkEarlier},
		{Name: "kubelet", Run: j.checkKubelet},
		{Name: "runtime", Run: j.checkRuntime},
		{Name: "cgroups", Run: j.checkCgroups},
		{Name: "network", Run: j.checkNetwork},
	}
	hub, clock := j.checkHub, j.checkClock
	if j.earlier != nil {
		// A node that has joined must start its pods also while the hub is away.
		hub = func(context.Context) checklist.Result { return checklist.Good("not asked: edgecore dials by itself") }
		clock = func(context.Context) checklist.Result { return checkYear() }
	}
	return append(list, checklist.Check{Name: "hub", Run: hub}, checklist.Check{Name: "clock", Run: clock})
}

func (j *joining) checkPrograms(context.Context) checklist.Result {
	path, err := j.binary("edgecore")
	if err != nil {
		return checklist.Bad("copy edgecore beside holdfast", "%v", err)
	}
	return checklist.Good("edgecore is %s", path)
}

func (j *joining) checkEarlier(context.Context) checklist.Result {
	if j.earlier == nil {
		return checklist.Good("none in %s", j.config.DataDir)
	}
	const remedy = "`holdfast reset` clears the earlier join; --data-dir and --config make room for a second edge beside it"
	if j.earlier.NodeName != j.config.NodeName {
		return checklist.Bad(remedy, "%s belongs to node %s, not %s", j.config.DataDir, j.earlier.NodeName, j.config.NodeName)
	}
	ca, err := pki.ParseCert(j.earlier.CA)
	if err != nil {
		return checklist.Bad(remedy, "the CA of the earlier join: %v", err)
	}
	if hash := pki.CAHash(ca); !pki.SameCAHash(hash, j.o.CAHash) {
		return checklist.Bad(remedy, "this machine joined a cloud with CA hash %s, and --ca-hash is %s", hash, j.o.CAHash)
	}
	return checklist.Good("node %s of the same cloud: it is kept", j.earlier.NodeName)
}

func (j *joining) checkKubelet(context.Context) checklist.Result {
	if pid, found := j.Machine.Process("kubelet"); found {
		return checklist.Bad("stop it (`systemctl disable --now kubelet`): two agents would fight over the same pods", "a kubelet runs here, process %d", pid)
	}
	return checklist.Good("none runs")
}

func (j *joining) checkRuntime(ctx context.Context) checklist.Result {
	endpoint := j.config.ContainerRuntimeEndpoint
	install := "install containerd 1.6 or newer"
	if m, ok := j.Machine.PackageManager(); ok {
		install = "add --install-runtime (it installs " + m.Packages() + " with " + m.Name + ")"
	}
	r, err := cri.Dial(endpoint)
	if errors.Is(err, cri.ErrNoSocket) {
		return checklist.Bad(install+", start it (`systemctl start containerd`), or name its socket with --container-runtime-endpoint", "no container runtime at %s", endpoint)
	}
	if err != nil {
		return checklist.Bad(install, "%v", err)
	}
	defer r.Close()
	j.runtime, err = r.Look(ctx)
	switch {
	case errors.Is(err, cri.ErrNoCRI):
		return j.noCRI(endpoint, install)
	case errors.Is(err, cri.ErrSilent):
		return checklist.Bad("`systemctl status containerd` says why; as root `ctr version` must answer", "the container runtime at %s does not answer: %v", endpoint, err)
	case err != nil:
		return checklist.Bad("`systemctl status containerd` says why", "%v", err)
	case !j.runtime.Ready:
		return checklist.Doubt("`journalctl -u containerd` says why", "%s %s is not ready yet: %s", j.runtime.Name, j.runtime.Version, j.runtime.Reason)
	case j.runtime.SandboxImage != "" && !j.runtime.SandboxPresent:
		return checklist.Doubt("it is pulled when the first pod starts; on a node with no registry in reach, import it with `ctr -n k8s.io images import`",
			"%s %s; its image for pod sandboxes, %s, is not here yet", j.runtime.Name, j.runtime.Version, j.runtime.SandboxImage)
	}
	return checklist.Good("%s %s at %s", j.runtime.Name, j.runtime.Version, endpoint)
}

// noCRI says why a runtime that answers does not speak CRI.
func (j *joining) noCRI(endpoint, install string) checklist.Result {
	path := j.Machine.Path("/etc/containerd/config.toml")
	line, text, err := disabledCRI(path)
	switch {
	case err != nil:
		return checklist.Bad("look for disabled_plugins in that file", "containerd at %s has its CRI plugin off, and %v", endpoint, err)
	case line > 0:
		return checklist.Bad("take \"cri\" out of line "+strconv.Itoa(line)+" of "+path+" (`"+text+"`), then `systemctl restart containerd`", "containerd at %s has its CRI plugin disabled", endpoint)
	}
	return checklist.Bad("take \"cri\" out of disabled_plugins in containerd's config and restart it; if it is older than 1.6, "+install, "containerd at %s does not speak CRI v1", endpoint)
}

func (j *joining) checkCgroups(context.Context) checklist.Result {
	version := "v1"
	if exists(j.Machine.Path("/sys/fs/cgroup/cgroup.controllers")) {
		version = "v2"
	} else if !exists(j.Machine.Path("/sys/fs/cgroup/memory")) {
		return checklist.Bad("on a Raspberry Pi add `cgroup_enable=memory cgroup_memory=1` to cmdline.txt in /boot/firmware and reboot", "the memory cgroup is not there: limits could not be kept")
	}
	if version == "v2" && !memoryController(j.Machine.Path("/sys/fs/cgroup/cgroup.controllers")) {
		return checklist.Bad("on a Raspberry Pi add `cgroup_enable=memory` to cmdline.txt in /boot/firmware and reboot", "cgroup v2 without the memory controller: limits could not be kept")
	}
	driver := j.runtime.CgroupDriver
	switch {
	case driver == "":
		return checklist.Doubt("if it is not so, set cgroupDriver in "+j.o.Config, "cgroup %s; the runtime does not tell its driver, cgroupfs is assumed", version)
	case driver == "cgroupfs" && version == "v2" && j.Machine.Systemd():
		return checklist.Doubt("set SystemdCgroup = true in containerd's config and restart it before the first pod runs", "cgroup v2, and the runtime uses cgroupfs beside systemd: two managers of one tree")
	}
	return checklist.Good("%s, driver %s", version, driver)
}

func memoryController(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.Contains(" "+strings.TrimSpace(string(b))+" ", " memory ")
}

func (j *joining) checkNetwork(context.Context) checklist.Result {
	dir := j.cniConfDir()
	if own := j.runtime.CNIConfDir; own != "" && filepath.Clean(own) != filepath.Clean(dir) {
		return checklist.Bad("leave --cni-conf-dir out, or say "+own, "the runtime reads its CNI configuration in %s, not in %s", own, dir)
	}
	dirs := j.runtime.CNIBinDirs
	if len(dirs) == 0 {
		dirs = []string{"/usr/lib/cni", "/opt/cni/bin"}
	}
	if file := cniConfigured(dir); file != "" {
		if j.runtime.Name != "" && !j.runtime.NetworkReady {
			return checklist.Doubt("`journalctl -u containerd` says more; edgecore waits for it", "%s is there, but the runtime says: %s", file, j.runtime.NetworkReason)
		}
		return checklist.Good("%s", file)
	}
	if missing := missingPlugins(dirs); len(missing) > 0 {
		return checklist.Bad("install them (Debian: containernetworking-plugins), or add --install-runtime; the runtime must look for them where they are (bin_dir)",
			"the CNI plugins %s are not in %s", strings.Join(missing, ", "), strings.Join(dirs, " or "))
	}
	return checklist.Good("none in %s: a bridge network for pods will be written there", dir)
}

// checkHub asks every hub; one that answers is enough to join.
func (j *joining) checkHub(ctx context.Context) checklist.Result {
	var good []string
	var failed error
	for _, hub := range j.o.Hubs {
		if _, err := enrollment.FindCA(ctx, enrollment.Request{Hub: hub, CAHash: j.o.CAHash}); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		good = append(good, hub)
	}
	switch {
	case len(good) == 0:
		return checklist.Bad("the address and --ca-hash must be those that `holdfast init` and `holdfast token create` print; the hub must run, and its port be open", "%v", failed)
	case failed != nil:
		return checklist.Doubt("the node joins all the same; it will be of no use when the others are down", "%v", failed)
	}
	return checklist.Good("%s: right CA (--ca-hash)", strings.Join(good, ", "))
}

// checkClock compares this machine's clock with the hub's. A wrong clock is no
// reason to stop: edgecore trusts no clock. It makes logs hard to read, though.
func (j *joining) checkClock(ctx context.Context) checklist.Result {
	var hub time.Time
	err := errors.New("no hub was given")
	for _, address := range j.o.Hubs {
		if hub, err = hubTime(ctx, address, j.o.CAHash); err == nil {
			break
		}
	}
	if err != nil {
		if y := checkYear(); y.Level != checklist.OK {
			return checklist.Doubt(y.Remedy, "%s", y.Fact)
		}
		return checklist.Good("shows %s UTC; the hub's is not known (%v)", time.Now().UTC().Format(time.DateTime), err)
	}
	apart := time.Since(hub).Round(time.Second)
	if apart.Abs() > clockTolerance {
		return checklist.Doubt("set it (`timedatectl set-ntp true`): pods and logs would carry wrong times", "it is %s off the hub's", apart)
	}
	return checklist.Good("agrees with the hub's")
}

// hubTime is the hub's clock, from a hub that has proved to be the one of caHash.
func hubTime(ctx context.Context, hub, caHash string) (time.Time, error) {
	ca, err := enrollment.FindCA(ctx, enrollment.Request{Hub: hub, CAHash: caHash})
	if err != nil {
		return time.Time{}, errors.New("the hub was not asked")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	host, _, err := net.SplitHostPort(hub)
	if err != nil {
		return time.Time{}, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	answer, err := getHealth(ctx, hub, config)
	if err != nil {
		// The clock that is in question must not keep the hub from being believed.
		var at time.Time
		if at, err = pki.TimeInside(err, roots, host, time.Now()); err == nil {
			config.Time = func() time.Time { return at }
			answer, err = getHealth(ctx, hub, config)
		}
	}
	if err != nil {
		return time.Time{}, err
	}
	return http.ParseTime(answer)
}

// getHealth returns the Date header of the hub's health check.
func getHealth(ctx context.Context, hub string, config *tls.Config) (string, error) {
	client := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+hub+"/healthz", nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	return answer.Header.Get("Date"), answer.Body.Close()
}
