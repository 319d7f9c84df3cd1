package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/build/controlplane/datastore"
	"github.com/holdfast-edge/holdfast/build/controlplane/kube"
	"github.com/holdfast-edge/holdfast/build/controlplane/pki"
)

const (
	// socketName is relative: the process works inside its data directory, so that a deep path
	// does not break the kernel's limit on the length of socket names.
	socketName   = "kine.sock"
	databaseName = "state.db"
	pollInterval = 100 * time.Millisecond
	// startLimit is generous for a loaded small machine; a start takes about five seconds.
	startLimit = 5 * time.Minute
)

// plane is a prepared control plane: everything that can be refused before it serves is done.
type plane struct {
	lock       *os.File
	store      *datastore.Store
	parts      *kube.Components
	client     kubernetes.Interface // as administrator, over the local address
	url        string
	kubeconfig string
}

// prepare takes the data directory and the port, makes the certificates and opens the database.
func prepare(ctx context.Context, o options) (_ *plane, err error) {
	syscall.Umask(0o077) // SQLite and Kubernetes make files, too: none of them for others to read
	s := &plane{kubeconfig: filepath.Join(o.dataDir, "admin.kubeconfig")}
	if s.lock, err = takeDataDir(o.dataDir); err != nil {
		return nil, err
	}
	var listener net.Listener
	defer func() {
		if err == nil {
			return
		}
		if listener != nil {
			listener.Close()
		}
		s.release()
	}()
	if listener, err = listen(ctx, o.listen); err != nil {
		return nil, err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	reach := reachAt(o)
	s.url = "https://" + net.JoinHostPort(reach.host, strconv.Itoa(port))

	serviceIP, err := firstAddress(o.serviceCIDR)
	if err != nil {
		return nil, err
	}
	files, err := pki.Ensure(pki.Request{
		Dir:       filepath.Join(o.dataDir, "pki"),
		ServerIPs: append(reach.ips, serviceIP),
		ServerDNS: reach.names,
	}, time.Now())
	if err != nil {
		return nil, err
	}
	if o.kubeletCA == "" {
		o.kubeletCA = files.CA.Cert
	}
	if err := datastore.Check(ctx, filepath.Join(o.dataDir, databaseName)); err != nil {
		return nil, err
	}
	if err := os.Chdir(o.dataDir); err != nil {
		return nil, fmt.Errorf("enter data directory: %w", err)
	}
	if s.store, err = datastore.Open(filepath.Join(o.dataDir, databaseName), socketName); err != nil {
		return nil, err
	}
	if err := pki.WriteKubeconfig(s.kubeconfig, s.url, "kubernetes-admin", files.CA, files.Admin); err != nil {
		return nil, err
	}
	if s.client, err = kubernetes.NewForConfig(&rest.Config{
		Host:            "https://" + kube.LocalAddress(listener),
		TLSClientConfig: rest.TLSClientConfig{CAFile: files.CA.Cert, CertFile: files.Admin.Cert, KeyFile: files.Admin.Key},
	}); err != nil {
		return nil, fmt.Errorf("make a client of the apiserver: %w", err)
	}
	s.parts, err = kube.Configure(kube.Config{
		Dir:                    o.dataDir,
		Listener:               listener,
		Advertise:              reach.endpoint,
		StoreSocket:            socketName,
		ServiceCIDR:            o.serviceCIDR,
		NodeMonitorGracePeriod: o.gracePeriod,
		NodeMonitorPeriod:      o.monitorPeriod,
		Files:                  files,
		KubeletCA:              o.kubeletCA,
	})
	return s, err
}

// takeDataDir makes the folder and keeps other control planes away from it. The kernel gives the
// lock back when the process ends, however it ends.
func takeDataDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %s: %w; choose a folder that this user can write with --data-dir", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w; choose a folder that this user can write with --data-dir", dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s: another control plane runs there; stop it, or choose another folder with --data-dir", dir)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return lock, nil
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the port is taken by another program; stop that program (`ss -ltnp` names it) or choose another port with --listen", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: this machine has no such address; give one of its own, or 0.0.0.0 for all, with --listen", address)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("listen on %s: %w; choose a port above 1023 with --listen, or run as root", address, err)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// serve runs all parts until ctx ends or one of them fails, and stops them in the reverse order:
// the apiserver outlives its clients, the database outlives the apiserver.
//
// A start that is cut short ends at once instead: Kubernetes' parts cannot be stopped in order
// before they have come up, and the database bears it as it bears a power cut.
func (s *plane) serve(ctx context.Context, stdout io.Writer) error {
	failed := make(chan error, 3)
	server := start(failed, s.parts.RunAPIServer)
	if err := s.whenReady(ctx, failed, "/readyz of the apiserver", apiserverReady); err != nil {
		return unlessAsked(ctx, err)
	}
	manager := start(failed, s.parts.RunControllerManager)
	scheduler := start(failed, s.parts.RunScheduler)
	if err := s.whenReady(ctx, failed, "the service account default/default", accountReady); err != nil {
		return unlessAsked(ctx, err)
	}
	defer s.release()
	defer server.stop()
	defer manager.stop()
	defer scheduler.stop()
	if _, err := fmt.Fprintf(stdout, "ready: %s, kubeconfig %s\n", s.url, s.kubeconfig); err != nil {
		slog.Warn("cannot say on the standard output that the control plane is ready", "error", err)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	case err := <-s.store.Done():
		return fmt.Errorf("the database's socket %s stopped: %w", socketName, err)
	}
}

// unlessAsked drops the error of a start that was cut short on request.
func unlessAsked(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// release closes the database and gives the data directory back.
func (s *plane) release() {
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			slog.Warn("the database was not closed in full", "error", err)
		}
	}
	s.lock.Close()
}

// part is one running component.
type part struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

// start runs one component apart from the process's own context, so that the order of stopping
// is ours to choose.
func start(failed chan<- error, run func(context.Context) error) part {
	ctx, cancel := context.WithCancel(context.Background())
	p := part{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		if err := run(ctx); err != nil {
			failed <- err
		}
	}()
	return p
}

func (p part) stop() {
	p.cancel()
	<-p.ended
}

// whenReady polls until the cluster, asked as its administrator, meets the condition.
func (s *plane) whenReady(ctx context.Context, failed <-chan error, what string, met func(context.Context, kubernetes.Interface) error) error {
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		last := met(ctx, s.client)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case <-limit.C:
			return fmt.Errorf("the control plane did not come up within %s: %s: %w; start it with --log-level info to see what it waits for", startLimit, what, last)
		case <-tick.C:
		}
	}
}

func apiserverReady(ctx context.Context, c kubernetes.Interface) error {
	_, err := c.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

// accountReady asks for what the controller manager makes last before pods can be created.
func accountReady(ctx context.Context, c kubernetes.Interface) error {
	_, err := c.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return errors.New("the controller manager has not made it yet")
	}
	return err
}

// reached is where clients find the apiserver.
type reached struct {
	host     string   // written into kubeconfigs
	endpoint net.IP   // of the Service "kubernetes"
	ips      []net.IP // in the serving certificate
	names    []string // in the serving certificate
}

func reachAt(o options) reached {
	r := reached{
		ips:   []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
	}
	if name, err := os.Hostname(); err == nil && name != "" {
		r.names = append(r.names, strings.ToLower(name))
	}
	host, _, _ := net.SplitHostPort(o.listen) // checked by options.complete
	own := net.ParseIP(host)
	if own.IsUnspecified() {
		own = outwardAddress()
	}
	r.ips = append(r.ips, own)
	for _, a := range o.advertise {
		ip := net.ParseIP(a)
		switch {
		case ip == nil:
			r.names = append(r.names, a)
		default:
			r.ips = append(r.ips, ip)
			if r.endpoint == nil {
				r.endpoint = ip
			}
		}
		if r.host == "" {
			r.host = a
		}
	}
	if r.host == "" {
		r.host = own.String()
	}
	if r.endpoint == nil {
		r.endpoint = own
	}
	return r
}

// outwardAddress is the machine's address on the way to its default route, or else any address
// that is not loopback, or else loopback.
func outwardAddress() net.IP {
	// Connecting a UDP socket sends nothing; the kernel only chooses the route.
	if conn, err := net.Dial("udp4", "198.51.100.1:9"); err == nil {
		defer conn.Close()
		return conn.LocalAddr().(*net.UDPAddr).IP
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return net.IPv4(127, 0, 0, 1)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP
		}
	}
	return net.IPv4(127, 0, 0, 1)
}

// firstAddress is the address that Kubernetes gives to the Service "kubernetes".
func firstAddress(cidr string) (net.IP, error) {
	_, network, err := net.ParseCIDR(cidr)
	if err != nil {
		return nil, fmt.Errorf("--service-cidr %s: %w", cidr, err)
	}
	ip := append(net.IP(nil), network.IP...)
	ip[len(ip)-1]++
	return ip, nil
}
