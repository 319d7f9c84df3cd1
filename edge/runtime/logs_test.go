package runtime

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestRotatedLogsAfterACrash(t *testing.T) {
	log := filepath.Join(t.TempDir(), "0.log")
	for _, name := range []string{"", ".20260101-000000.gz", ".20260102-000000", ".20260102-000000.gz", ".20260103-000000", ".20260103-000000.tmp", ".bak"} {
		write(t, log+name, name)
	}
	write(t, filepath.Join(filepath.Dir(log), "10.log.20260101-000000"), "")
	got, err := rotatedLogs(log)
	want := []string{log + ".20260101-000000.gz", log + ".20260102-000000.gz", log + ".20260103-000000"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for name, there := range map[string]bool{".20260103-000000.tmp": false, ".20260102-000000": false, ".bak": true, "": true} {
		if exists(log+name) != there {
			t.Errorf("%q is there: %v", name, !there)
		}
	}
}

func TestRotatedNamesSortWhateverTheClockSays(t *testing.T) {
	log := filepath.Join(t.TempDir(), "0.log")
	late, early := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), time.Date(1970, 1, 1, 0, 0, 1, 0, time.UTC)
	last := ""
	for _, now := range []time.Time{late, late, early, early, late.Add(time.Hour)} {
		name, err := freeName(log, now)
		if err != nil {
			t.Fatal(err)
		}
		if name <= last {
			t.Errorf("%s comes before %s", name, last)
		}
		last = name
		write(t, name, "")
	}
	if !strings.HasSuffix(last, ".20260501-130000") {
		t.Errorf("a clock that is right again names %s", last)
	}
}

func TestCompressedLogsCanBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log.20260101-000000")
	write(t, path, strings.Repeat("line\n", 1000))
	if err := compress(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the plain one: %v", err)
	}
	b, err := os.ReadFile(path + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(z); err != nil || string(text) != strings.Repeat("line\n", 1000) {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// TestRotationTouchesNothingButFiles: a pod may have put anything beside its logs.
func TestRotationTouchesNothingButFiles(t *testing.T) {
	dir := t.TempDir()
	secret, log := filepath.Join(dir, "secret"), filepath.Join(dir, "0.log")
	write(t, secret, "secret")
	link, fifo, plain := log+".20200101-000000", log+".20200101-000001", log+".20200101-000002"
	write(t, plain, "line\n")
	for _, l := range []string{link, plain + ".tmp"} {
		if err := os.Symlink(secret, l); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := rotatedLogs(log); err != nil || !reflect.DeepEqual(got, []string{plain}) {
		t.Errorf("rotated are %v, %v; want %s alone", got, err, plain)
	}
	for _, path := range []string{link, fifo} { // in the place of what was a file when it was listed
		done := make(chan error, 1)
		go func() { done <- compress(path) }()
		select {
		case err := <-done:
			if err == nil || exists(path+".gz") {
				t.Errorf("%s was compressed", path)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s is waited for", path)
		}
	}
	if err := compress(plain); err != nil || !exists(plain+".gz") {
		t.Errorf("a file beside them: %v", err)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("what a link leads to is now %q, %v", b, err)
	}
}

func TestRotateLogsEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&Runtime{}).RotateLogs(ctx, Rotation{}); err != nil {
		t.Error(err)
	}
	if o := (Rotation{MaxFiles: 1}).withDefaults(); o.MaxFiles != 2 || o.MaxSize != 10<<20 || o.Interval != 10*time.Second {
		t.Errorf("%+v", o)
	}
}

func TestTailOfLogIsBoundedAndJoined(t *testing.T) {
	const stamp = "2026-01-01T00:00:00.000000000Z"
	if got := tailOfLog([]byte("cut off line\n" + stamp + " stdout P one \n" + stamp + " stdout F two\n" + stamp + " stderr F three\nbroken")); got != "one two\nthree\n" {
		t.Errorf("%q", got)
	}
	var many strings.Builder
	for range 200 {
		many.WriteString(stamp + " stdout F x\n")
	}
	if got := tailOfLog([]byte(many.String())); got != strings.Repeat("x\n", 80) {
		t.Errorf("%d bytes of many lines", len(got))
	}
	if got := tailOfLog([]byte(stamp + " stdout F " + strings.Repeat("y", 10000) + "end\n")); len(got) != maxLogMessage || !strings.HasSuffix(got, "yend\n") {
		t.Errorf("%d bytes of one long line", len(got))
	}
}

// A container writes its termination message file itself and may leave anything in its place.
func TestTerminationMessageFileIsNotTrusted(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "secret"), "of the node")
	if err := os.Symlink("secret", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := mkfifo(filepath.Join(dir, "pipe")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "bytes"), "a\xffb")
	for name, want := range map[string]string{"link": "", "pipe": "", "none": "", ".": "", "bytes": "a\ufffdb", "secret": "of the node"} {
		got, _ := terminationMessage(&cri.ContainerStatus{
			Annotations: map[string]string{AnnotationTerminationMessagePath: "/dev/log"},
			Mounts:      []*cri.Mount{{ContainerPath: "/other", HostPath: "/etc/passwd"}, {ContainerPath: "/dev/log", HostPath: filepath.Join(dir, name)}},
		})
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestNameServiceByPolicy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, file, "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch site.test\noptions timeout:3 ndots:1\n")
	cluster := ClusterDNS{Servers: []string{"10.96.0.10"}, Domain: "cluster.local", ResolvConf: file}
	none := ClusterDNS{Domain: "cluster.local", ResolvConf: file}
	host := &DNS{Servers: []string{"192.0.2.1", "192.0.2.2"}, Searches: []string{"site.test"}, Options: []string{"timeout:3", "ndots:1"}}
	inner := &DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "site.test"}, Options: []string{"ndots:5"}}
	nine, five := "9", "5"
	own := &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.9", "192.0.2.1"}, Searches: []string{"own.test", "site.test"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &nine}, {Name: "edns0"}, {Name: "attempts", Value: &five}}}
	for name, c := range map[string]struct {
		policy corev1.DNSPolicy
		config *corev1.PodDNSConfig
		net    bool
		node   ClusterDNS
		want   *DNS
	}{
		"nothing said":                {"", nil, false, cluster, inner},
		"cluster first":               {corev1.DNSClusterFirst, nil, false, cluster, inner},
		"no cluster servers":          {corev1.DNSClusterFirst, nil, false, none, host},
		"cluster first, host network": {corev1.DNSClusterFirst, nil, true, cluster, host},
		"with host net":               {corev1.DNSClusterFirstWithHostNet, nil, true, cluster, inner},
		"default":                     {corev1.DNSDefault, nil, false, cluster, host},
		"none":                        {corev1.DNSNone, own, false, cluster, &DNS{Servers: own.Nameservers, Searches: own.Searches, Options: []string{"ndots:9", "edns0", "attempts:5"}}},
		"default with the pod's own":  {corev1.DNSDefault, own, false, cluster, &DNS{Servers: []string{"192.0.2.1", "192.0.2.2", "192.0.2.9"}, Searches: []string{"site.test", "own.test"}, Options: []string{"timeout:3", "ndots:9", "edns0", "attempts:5"}}},
	} {
		pod := testPod()
		pod.Spec.DNSPolicy, pod.Spec.DNSConfig, pod.Spec.HostNetwork = c.policy, c.config, c.net
		if got, err := PodDNS(pod, c.node); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
	pod := testPod()
	pod.Spec.DNSPolicy = corev1.DNSNone
	if _, err := PodDNS(pod, cluster); !errors.Is(err, ErrInvalidSpec) || !strings.Contains(err.Error(), "ns/web") {
		t.Errorf("None without servers: %v", err)
	}
	pod.Spec.DNSPolicy = "Other"
	if _, err := PodDNS(pod, cluster); !errors.Is(err, ErrInvalidSpec) {
		t.Errorf("an unknown policy: %v", err)
	}
	pod.Spec.DNSPolicy = corev1.DNSDefault
	if _, err := PodDNS(pod, ClusterDNS{ResolvConf: file + "-none"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a configured file that is not there: %v", err)
	}
}

func TestHostsFiles(t *testing.T) {
	pod := testPod()
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"a", "b"}}}
	got, err := EtcHosts(pod, []string{"10.0.0.7", "fd00::7"}, "web", "sub.ns.svc.cluster.local", "")
	want := "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n" +
		"fe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n" +
		"10.0.0.7\tweb.sub.ns.svc.cluster.local\tweb\nfd00::7\tweb.sub.ns.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n192.0.2.1\ta\tb\n"
	if err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	pod.Spec.HostNetwork = true
	file := filepath.Join(t.TempDir(), "hosts")
	write(t, file, "192.0.2.5\tnode\n")
	if got, err := EtcHosts(pod, nil, "web", "", file); err != nil ||
		string(got) != "# Kubernetes-managed hosts file (host network).\n192.0.2.5\tnode\n\n# Entries added by HostAliases.\n192.0.2.1\ta\tb\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// Containers have this very file mounted: it must stay the same file.
func TestHostsFileIsWrittenInPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pod", "etc-hosts")
	var before os.FileInfo
	for i, ip := range []string{"10.0.0.7", "10.0.0.7", "10.0.0.8"} {
		if err := WriteEtcHosts(file, testPod(), []string{ip}, "web", ""); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && !os.SameFile(before, info) {
			t.Errorf("with %s another file stands there", ip)
		}
		if i == 1 && !info.ModTime().Equal(before.ModTime()) {
			t.Error("it was written although nothing changed")
		}
		before = info
		if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), ip+"\tweb\n") {
			t.Errorf("%q, %v", b, err)
		}
	}
}

func FuzzParseLogLine(f *testing.F) {
	for _, s := range []string{
		"2026-01-01T00:00:00.000000000Z stdout F hello\n", "2026-01-01T00:00:00Z stderr P \n", "2026-01-01T00:00:00+02:00 stdout P:x y", "", " ", "x stdout F y",
		"2026-01-01T00:00:00Z stdout F", "2026-01-01T00:00:00Z stdin F x",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, ok := parseLogLine(line)
		if ok && (e.stream != "stdout" && e.stream != "stderr" || !bytes.HasSuffix(bytes.TrimSuffix(line, []byte("\n")), e.content) || !bytes.HasPrefix(line, []byte(e.time))) {
			t.Errorf("%q became %+v", line, e)
		}
		if m := tailOfLog(line); len(m) > 3*maxLogMessage || !utf8.ValidString(m) {
			t.Errorf("a message of %d bytes from %d", len(m), len(line))
		}
	})
}

func FuzzResolvConf(f *testing.F) {
	for _, s := range []string{
		"nameserver 192.0.2.1\nsearch a. b .\noptions ndots:2 rotate", "nameserver fe80::1%eth0 # x", "nameserver\nsearch\n; c", "domain x\nsearch y z", "nameserver 1.2.3.4\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := parseResolvConf(text)
		for _, l := range [][]string{d.Servers, d.Searches, d.Options} {
			seen := map[string]bool{}
			for _, s := range l {
				// Each becomes a word of one line of the pod's own file.
				if s == "" || strings.ContainsAny(s, " \t\r\n#;") || seen[s] {
					t.Errorf("%q in %+v", s, d)
				}
				seen[s] = true
			}
		}
	})
}

func FuzzKeyring(f *testing.F) {
	for _, s := range []string{
		`{"auths":{"example.test":{"auth":"YTpi"}}}`, `{"auths":{"https://*.test:5000/v1/x":{"username":"a","password":"b"}}}`, `{"auths":null}`, `{"auths":{"":{}}}`,
		`{"auths":{"[":{"auth":"YTpi"}}}`, `[]`, `{"example.test":{"auth":"YTpi"}}`,
	} {
		f.Add(s, "example.test/team/app:1")
	}
	f.Fuzz(func(t *testing.T, data, image string) {
		for kind, key := range map[corev1.SecretType]string{corev1.SecretTypeDockerConfigJson: corev1.DockerConfigJsonKey, corev1.SecretTypeDockercfg: corev1.DockerConfigKey} {
			var k Keyring
			err := k.Add(secret(kind, key, data))
			if err != nil && !strings.Contains(err.Error(), "ns/pull") {
				t.Errorf("%v", err)
			}
			if _, bad := Normalize(image); bad != nil && len(k.For(image)) > 0 {
				t.Errorf("credentials for %q, which is no image", image)
			}
		}
	})
}

func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"busybox", "a/b:c", "example.test:5000/a@sha256:" + strings.Repeat("0", 64), "[::1]:1/a", "a__b", "A/b", "localhost/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		full, err := Normalize(ref)
		if err != nil {
			if !errors.Is(err, ErrInvalidImage) {
				t.Errorf("%q: %v", ref, err)
			}
			return
		}
		if again, err := Normalize(full); err != nil || again != full {
			t.Errorf("%q becomes %q becomes %q (%v)", ref, full, again, err)
		}
		if !strings.HasPrefix(full, "sha256:") && !validRegistry(registryOf(full)) {
			t.Errorf("%q: registry of %q", ref, full)
		}
	})
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }
