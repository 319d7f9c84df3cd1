package pki

import (
	"bytes"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// atStart is when the first start of every test happens, after some time.
func atStart(after time.Duration) time.Time {
	return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(after)
}

func request(dir string) Request {
	return Request{Dir: dir, ServerIPs: []net.IP{net.IPv4(127, 0, 0, 1)}, ServerDNS: []string{"localhost"}}
}

func ensure(t *testing.T, r Request, now time.Time) Files {
	t.Helper()
	f, err := Ensure(r, now)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// contents reads every file of the folder.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, e := range entries {
		if all[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// changed names the pairs whose keys differ between two readings.
func changed(before, after map[string][]byte) string {
	var names []string
	for _, name := range []string{"ca", "front-proxy-ca", "service-account", "apiserver", "apiserver-kubelet-client", "admin", "controller-manager", "scheduler", "front-proxy-client"} {
		if !bytes.Equal(before[name+".key"], after[name+".key"]) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func TestSecondStartChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, request(dir), atStart(0))
	before := contents(t, dir)
	ensure(t, request(dir), atStart(300*24*time.Hour))
	after := contents(t, dir)
	for name, text := range before {
		if !bytes.Equal(text, after[name]) {
			t.Errorf("%s was written anew", name)
		}
	}
	if len(before) != len(after) {
		t.Errorf("%d files became %d", len(before), len(after))
	}
}

func TestEveryFileIsForItsOwnerAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, request(dir), atStart(0))
	for name := range contents(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode().Perm())
		}
	}
}

func TestStartRenewsWhatNearsItsEndAndKeepsTheAuthorities(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, request(dir), atStart(0))
	before := contents(t, dir)
	ensure(t, request(dir), atStart(leafLife-renewBefore+24*time.Hour))
	got := changed(before, contents(t, dir))
	if want := "apiserver apiserver-kubelet-client admin controller-manager scheduler front-proxy-client"; got != want {
		t.Errorf("renewed %q, want %q", got, want)
	}
}

func TestClockThatRunsBehindRenewsNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, request(dir), atStart(0))
	before := contents(t, dir)
	ensure(t, request(dir), time.Date(1970, 1, 1, 0, 5, 0, 0, time.UTC))
	if got := changed(before, contents(t, dir)); got != "" {
		t.Errorf("renewed %q at a wrong time of day", got)
	}
}

func TestNewAddressReissuesTheServingCertificateAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, request(dir), atStart(0))
	before := contents(t, dir)
	r := request(dir)
	r.ServerIPs = append(r.ServerIPs, net.IPv4(10, 1, 2, 3))
	r.ServerDNS = append(r.ServerDNS, "cloud.example.test")
	f := ensure(t, r, atStart(0))
	if got := changed(before, contents(t, dir)); got != "apiserver" {
		t.Errorf("reissued %q, want the apiserver's alone", got)
	}
	cert, _, err := load(f.Serving)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "10.1.2.3", "localhost", "cloud.example.test"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
}

func TestDamagedLeafIsReissued(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	f := ensure(t, request(dir), atStart(0))
	if err := os.WriteFile(f.Admin.Cert, []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.Scheduler.Key); err != nil {
		t.Fatal(err)
	}
	f = ensure(t, request(dir), atStart(0))
	for _, p := range []Pair{f.Admin, f.Scheduler} {
		if _, err := tls.LoadX509KeyPair(p.Cert, p.Key); err != nil {
			t.Errorf("%s: %v", p.Cert, err)
		}
	}
}

func TestDamagedAuthorityIsAnErrorAndIsKept(t *testing.T) {
	for _, name := range []string{"ca.crt", "ca.key", "front-proxy-ca.key", "service-account.key"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			ensure(t, request(dir), atStart(0))
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
				t.Fatal(err)
			}
			before := contents(t, dir)
			_, err := Ensure(request(dir), atStart(0))
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
				t.Fatalf("got %v, want an error that names %s and the remedy", err, path)
			}
			if got := changed(before, contents(t, dir)); got != "" {
				t.Errorf("%s was replaced", got)
			}
		})
	}
}

func TestMissingAuthorityKeyIsAnError(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	f := ensure(t, request(dir), atStart(0))
	if err := os.Remove(f.CA.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(request(dir), atStart(0)); err == nil {
		t.Fatal("a certificate authority without its key was accepted")
	}
}

func TestAuthorityFromItsKeyStillVouchesForWhatItSigned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	f := ensure(t, request(dir), atStart(0))
	if err := os.Remove(f.CA.Cert); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	f = ensure(t, request(dir), atStart(0))
	if got := changed(before, contents(t, dir)); got != "" {
		t.Errorf("keys of %s were replaced", got)
	}
	ca, _, err := load(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _, err := load(f.Admin)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.CheckSignatureFrom(ca); err != nil {
		t.Error(err)
	}
}
