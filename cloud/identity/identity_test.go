package identity_test

import (
	"context"
	"crypto/tls"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/cloud/identity"
	"github.com/holdfast-edge/holdfast/common/enrollment/cluster"
	"github.com/holdfast-edge/holdfast/common/pki"
	controlplane "github.com/holdfast-edge/holdfast/tests/cluster"
)

// TestIdentity opens identities on a real apiserver.
func TestIdentity(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	c, err := controlplane.Start(ctx, controlplane.Options{Dir: t.TempDir(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
	})
	client := c.Client()
	t.Run("of hubs that start together all have one CA", func(t *testing.T) { together(t, client) })
	t.Run("the first start makes a CA and a certificate", func(t *testing.T) { firstStart(t, client) })
	t.Run("a restart keeps the certificate", func(t *testing.T) { restart(t, client) })
	t.Run("a certificate that does not fit is made anew", func(t *testing.T) { renewed(t, client) })
	t.Run("a renewal drops no connection", func(t *testing.T) { renewedWhileServing(t, client) })
	t.Run("without a data folder it is in memory", func(t *testing.T) { inMemory(t, client) })
}

func open(t *testing.T, o identity.Options) *identity.Identity {
	t.Helper()
	i, err := identity.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func serial(i *identity.Identity) string { return i.Serving().Leaf.SerialNumber.String() }

func firstStart(t *testing.T, client kubernetes.Interface) {
	dir := t.TempDir()
	i := open(t, identity.Options{Client: client, DataDir: dir, Hosts: []string{"Hub.example.test.", "192.0.2.1", "[2001:db8::1]"}})
	kept, err := cluster.GetCA(t.Context(), client)
	if err != nil || kept.Hash() != i.CA().Hash() {
		t.Fatalf("the cluster's CA: %v", err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hub.example.test", "192.0.2.1", "2001:db8::1", "localhost", "127.0.0.1", host} {
		if err := i.Serving().Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "pki", "hub.key"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the key's mode is %v, %v", info.Mode(), err)
	}
	config := i.TLSConfig()
	if config.MinVersion != tls.VersionTLS13 || config.ClientAuth != tls.VerifyClientCertIfGiven || !config.SessionTicketsDisabled || !slices.Equal(config.NextProtos, []string{"http/1.1"}) {
		t.Errorf("the TLS configuration is %+v", config)
	}
}

// together opens several hubs on a cluster that has no CA yet.
func together(t *testing.T, client kubernetes.Interface) {
	var all sync.WaitGroup
	hashes := make([]string, 5)
	for n := range hashes {
		all.Go(func() {
			i, err := identity.Open(t.Context(), identity.Options{Client: client, DataDir: t.TempDir(), Hosts: []string{"127.0.0.1"}})
			if err != nil {
				t.Error(err)
				return
			}
			if hashes[n] = i.CA().Hash(); i.Serving().Leaf.CheckSignatureFrom(i.CA().Cert) != nil {
				t.Error("a hub serves with another CA's certificate")
			}
		})
	}
	all.Wait()
	if hashes = slices.Compact(hashes); len(hashes) != 1 || hashes[0] == "" {
		t.Errorf("they have the CAs %q", hashes)
	}
}

// renewedWhileServing holds a connection while the certificate comes near its end
// and another takes its place.
func renewedWhileServing(t *testing.T, client kubernetes.Interface) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var passed atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }
	i := open(t, identity.Options{Client: client, DataDir: t.TempDir(), Hosts: []string{"127.0.0.1"}, LookEvery: time.Millisecond, Now: now})
	running := make(chan error, 1)
	go func() { running <- i.Run(ctx) }()
	l, err := tls.Listen("tcp", "127.0.0.1:0", i.TLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	dial := func() *tls.Conn {
		t.Helper()
		dialer := &tls.Dialer{Config: &tls.Config{RootCAs: i.CA().Pool(), MinVersion: tls.VersionTLS13, Time: now, NextProtos: []string{"http/1.1"}}}
		conn, err := dialer.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn.(*tls.Conn)
	}
	echo := func(conn *tls.Conn) {
		t.Helper()
		b := make([]byte, 1)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, b); err != nil || b[0] != 'x' {
			t.Fatalf("%q, %v", b, err)
		}
	}
	early := dial()
	defer early.Close()
	echo(early)
	first := serial(i)
	passed.Store(int64(pki.ServerTTL - 29*24*time.Hour))
	for serial(i) == first {
		select {
		case <-ctx.Done():
			t.Fatal("the certificate is not renewed")
		default:
			runtime.Gosched()
		}
	}
	echo(early)
	late := dial()
	defer late.Close()
	echo(late)
	shown := late.ConnectionState().PeerCertificates[0]
	if shown.SerialNumber.String() != serial(i) || !shown.NotAfter.After(now().Add(pki.ServerTTL-time.Hour)) {
		t.Errorf("a new connection is shown a certificate that ends at %s", shown.NotAfter)
	}
	cancel()
	if err := <-running; err != nil {
		t.Error(err)
	}
}

func restart(t *testing.T, client kubernetes.Interface) {
	o := identity.Options{Client: client, DataDir: t.TempDir(), Hosts: []string{"192.0.2.1"}}
	first := open(t, o)
	o.Hosts = []string{"192.0.2.1", "192.0.2.1", "localhost"} // the same, said otherwise
	if again := open(t, o); serial(again) != serial(first) {
		t.Error("another certificate after a restart")
	}
}

func renewed(t *testing.T, client kubernetes.Interface) {
	certOf := func(dir string) string { return filepath.Join(dir, "pki", "hub.crt") }
	for name, change := range map[string]func(t *testing.T, o *identity.Options){
		"another host": func(_ *testing.T, o *identity.Options) { o.Hosts = []string{"192.0.2.2"} },
		"near its end": func(_ *testing.T, o *identity.Options) {
			o.Now = func() time.Time { return time.Now().Add(pki.ServerTTL - 29*24*time.Hour) }
		},
		"another CA's": func(t *testing.T, o *identity.Options) {
			other, err := pki.NewCA("other")
			if err != nil {
				t.Fatal(err)
			}
			pair, err := other.SignServer([]string{"192.0.2.1"}, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			certPEM, keyPEM, err := pki.EncodePair(pair)
			if err != nil {
				t.Fatal(err)
			}
			write(t, certOf(o.DataDir), certPEM)
			write(t, filepath.Join(o.DataDir, "pki", "hub.key"), keyPEM)
		},
		"broken": func(t *testing.T, o *identity.Options) { write(t, certOf(o.DataDir), []byte("x")) },
		"without its key": func(t *testing.T, o *identity.Options) {
			if err := os.Remove(filepath.Join(o.DataDir, "pki", "hub.key")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := identity.Options{Client: client, DataDir: t.TempDir(), Hosts: []string{"192.0.2.1"}}
			first := open(t, o)
			change(t, &o)
			second := open(t, o)
			if serial(second) == serial(first) {
				t.Fatal("the old certificate serves on")
			}
			o.Now = nil
			if third := open(t, o); serial(third) != serial(second) {
				t.Error("the new certificate was not kept")
			}
		})
	}
	// A month and a day before the end is early enough.
	o := identity.Options{Client: client, DataDir: t.TempDir()}
	first := open(t, o)
	o.Now = func() time.Time { return time.Now().Add(pki.ServerTTL - 31*24*time.Hour) }
	if again := open(t, o); serial(again) != serial(first) {
		t.Error("the certificate was made anew too early")
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func inMemory(t *testing.T, client kubernetes.Interface) {
	i := open(t, identity.Options{Client: client})
	if i.Serving() == nil {
		t.Fatal("no certificate")
	}
	// A data folder that cannot be written is no reason not to serve.
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	if i = open(t, identity.Options{Client: client, DataDir: file}); i.Serving() == nil {
		t.Fatal("no certificate")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.Run(ctx); err != nil {
		t.Fatal(err)
	}
}
