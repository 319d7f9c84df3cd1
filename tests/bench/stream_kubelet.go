package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/tests/rig"
	"github.com/holdfast-edge/holdfast/tests/tool"
	"github.com/holdfast-edge/holdfast/tests/world"
)

const (
	kubeletNode = "kubelet"
	kubeletPort = 10450
	hopPort     = 10451
)

// kubelet is a real one beside the apiserver, with a containerd like those of the edge nodes: what edgecore
// at the far end of its line is compared with.
type kubelet struct {
	dir        string
	containerd *rig.Containerd
	cmd        *exec.Cmd
	log        *os.File
	hop        *exec.Cmd
}

// startKubelet returns when its node is Ready.
func startKubelet(ctx context.Context, w *world.World) (_ *kubelet, err error) {
	k := &kubelet{dir: filepath.Join(w.Dir, kubeletNode)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start a kubelet: %w", err), k.stop(w))
		}
	}()
	if err := os.MkdirAll(k.podLogs(), 0o755); err != nil {
		return k, err
	}
	if k.containerd, err = rig.StartContainerd(ctx, rig.Options{CNI: true}); err != nil {
		return k, err
	}
	if err := k.configure(w); err != nil {
		return k, err
	}
	binary, err := tool.Path(tool.Kubelet)
	if err != nil {
		return k, err
	}
	if k.log, err = os.Create(filepath.Join(k.dir, "kubelet.log")); err != nil {
		return k, err
	}
	k.cmd = exec.Command(binary, "--config", filepath.Join(k.dir, "config.yaml"), "--kubeconfig", w.Kubeconfig(), "--root-dir", filepath.Join(k.dir, "root"),
		"--cert-dir", filepath.Join(k.dir, "pki"), "--hostname-override", kubeletNode, "--node-ip", w.Bridge.Addr().String())
	k.cmd.Stdout, k.cmd.Stderr = k.log, k.log
	if err := k.cmd.Start(); err != nil {
		k.cmd = nil
		return k, err
	}
	err = world.Eventually(ctx, patience, "the kubelet's node is Ready", func(ctx context.Context) (bool, error) {
		n, err := w.Client().CoreV1().Nodes().Get(ctx, kubeletNode, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return world.NodeReady(n) == corev1.ConditionTrue, nil
	})
	if err != nil {
		return k, fmt.Errorf("%w; it says:\n%s", err, k.said())
	}
	return k, nil
}

// behindAProxy starts a proxy before the kubelet, which shows who it is by the client's certificate.
func (k *kubelet) behindAProxy(direct *end) (*end, error) {
	root, err := world.Root()
	if err != nil {
		return nil, err
	}
	address, err := url.Parse(direct.direct.Host)
	if err != nil {
		return nil, err
	}
	listen := net.JoinHostPort(address.Hostname(), strconv.Itoa(hopPort))
	client := filepath.Join(k.dir, "client")
	for ending, text := range map[string][]byte{".crt": direct.direct.CertData, ".key": direct.direct.KeyData, ".ca": direct.direct.CAData} {
		if err := os.WriteFile(client+ending, text, 0o600); err != nil {
			return nil, err
		}
	}
	hop := exec.Command(helper(root, "hop"), "-listen", listen, "-to", address.Host, "-serving", filepath.Join(k.dir, "serving"), "-client", client)
	hop.Stderr = os.Stderr
	if err := hop.Start(); err != nil {
		return nil, err
	}
	k.hop = hop
	e := &end{name: "kubelet + hop", node: direct.node, podLogs: direct.podLogs, direct: rest.CopyConfig(direct.direct), hop: true}
	e.direct.Host = "https://" + listen
	return e, nil
}

func (k *kubelet) podLogs() string { return filepath.Join(k.dir, "pod-logs") }

// said is the end of its log.
func (k *kubelet) said() string {
	text, err := os.ReadFile(k.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// configure writes its config and a certificate of the cluster's CA.
func (k *kubelet) configure(w *world.World) error {
	pki := filepath.Join(w.Dir, "controlplane", "pki")
	cert, key, err := serving(filepath.Join(pki, "ca.crt"), filepath.Join(pki, "ca.key"), net.ParseIP(w.Bridge.Addr().String()))
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
port: %d
healthzPort: 0
tlsCertFile: %s
tlsPrivateKeyFile: %s
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: %q
podLogsDir: %s
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
oomScoreAdj: 0
resolvConf: ""
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {nodefs.available: "0%%", imagefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.inodesFree: "0%%", memory.available: "1Mi"}
`, w.Bridge.Addr(), kubeletPort, filepath.Join(k.dir, "serving.crt"), filepath.Join(k.dir, "serving.key"), filepath.Join(pki, "ca.crt"), k.containerd.Endpoint(), k.podLogs())
	return errors.Join(
		os.WriteFile(filepath.Join(k.dir, "serving.crt"), cert, 0o600), os.WriteFile(filepath.Join(k.dir, "serving.key"), key, 0o600),
		os.WriteFile(filepath.Join(k.dir, "config.yaml"), []byte(config), 0o600))
}

// stop ends it and what it has started.
func (k *kubelet) stop(w *world.World) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if k.hop != nil {
		errs = append(errs, k.hop.Process.Kill())
		_ = k.hop.Wait() // it was killed
	}
	if k.cmd != nil {
		if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		late := time.AfterFunc(30*time.Second, func() { _ = k.cmd.Process.Kill() })
		_ = k.cmd.Wait() // how it ends is of no interest
		late.Stop()
		errs = append(errs, k.log.Close(), w.Client().CoreV1().Nodes().Delete(ctx, kubeletNode, metav1.DeleteOptions{}))
	}
	if k.containerd != nil {
		errs = append(errs, k.containerd.Stop(ctx))
	}
	errs = append(errs, world.UnmountBelow(k.dir))
	return errors.Join(errs...)
}

// serving is a certificate for an address, signed by the CA of two files.
func serving(caCert, caKey string, address net.IP) (certPEM, keyPEM []byte, err error) {
	read := func(file string) []byte {
		text, failed := os.ReadFile(file)
		err = errors.Join(err, failed)
		if block, _ := pem.Decode(text); block != nil {
			return block.Bytes
		}
		return nil
	}
	caDER, caKeyDER := read(caCert), read(caKey)
	if err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", caCert, err)
	}
	signer, err := x509.ParseECPrivateKey(caKeyDER)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", caKey, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "system:node:" + kubeletNode, Organization: []string{"system:nodes"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{address},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	var cert, private bytes.Buffer
	err = errors.Join(pem.Encode(&cert, &pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.Encode(&private, &pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
	return cert.Bytes(), private.Bytes(), err
}
