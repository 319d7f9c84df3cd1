package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var errNoHandler = errors.New("the probe has no action that this node knows")

const maxOutput = 10 << 10 // bytes of an answer that are read or told

// exec runs the probe's command. A command that fails or takes too long says something of the container; a
// runtime that cannot run it does not.
func (p *Prober) exec(ctx context.Context, c *check, timeout time.Duration) (string, error) {
	code, output, err := p.o.Exec(ctx, c.target.ContainerID, c.spec.Exec.Command, timeout)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(c.spec.Exec.Command, " "), timeout), nil
	case err != nil:
		return "", err
	case code != 0:
		if output == "" {
			output = fmt.Sprintf("command %q exited with %d", strings.Join(c.spec.Exec.Command, " "), code)
		}
		return clip(output), nil
	}
	return "", nil
}

func clip(s string) string {
	if len(s) > maxOutput {
		return s[:maxOutput]
	}
	return s
}

// port resolves a number or the name of one of the container's ports.
func port(p intstr.IntOrString, c *corev1.Container) (string, error) {
	if p.Type == intstr.Int {
		return checkPort(p.IntValue())
	}
	for _, cp := range c.Ports {
		if cp.Name == p.StrVal {
			return checkPort(int(cp.ContainerPort))
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return checkPort(n)
	}
	return "", fmt.Errorf("container %s has no port named %q", c.Name, p.StrVal)
}

func checkPort(n int) (string, error) {
	if n < 1 || n > 65535 {
		return "", fmt.Errorf("port %d is out of range", n)
	}
	return strconv.Itoa(n), nil
}

// Get makes the request that a probe or a hook asks for; an answer between 200 and 399 is success. agent is
// the first half of the User-Agent.
func Get(ctx context.Context, g *corev1.HTTPGetAction, c *corev1.Container, ip, agent string) error {
	n, err := port(g.Port, c)
	if err != nil {
		return err
	}
	host := g.Host
	if host == "" {
		host = ip
	}
	scheme := strings.ToLower(string(g.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(g.Path)
	if err != nil {
		u = &url.URL{Path: g.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, n)
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", agent+"1.36")
	req.Header.Set("Accept", "*/*")
	for _, h := range g.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
		}
		if h.Value == "" && len(req.Header.Values(h.Name)) > 0 {
			req.Header.Del(h.Name) // an empty value takes a header away
			continue
		}
		if name := http.CanonicalHeaderKey(h.Name); name == "User-Agent" || name == "Accept" {
			req.Header.Set(name, h.Value)
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	transport := &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		// Kubernetes does not verify the certificates of what it probes: the pod's address is what it
		// trusts. See the documentation of HTTPGetAction.scheme.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse // where it points to says nothing of this container
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxOutput)); err != nil {
		return err
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	}
	return nil
}

func dial(ctx context.Context, t *corev1.TCPSocketAction, c *corev1.Container, ip string) error {
	n, err := port(t.Port, c)
	if err != nil {
		return err
	}
	host := t.Host
	if host == "" {
		host = ip
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, n))
	if err != nil {
		return err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		// Reset rather than linger: a probe leaves no connection in TIME_WAIT behind.
		if err := tcp.SetLinger(0); err != nil {
			conn.Close()
			return nil
		}
	}
	conn.Close()
	return nil
}

// askHealth speaks grpc.health.v1.
func askHealth(ctx context.Context, g *corev1.GRPCAction, ip string) error {
	n, err := checkPort(int(g.Port))
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(ip, n), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/1.36"), grpc.WithDisableServiceConfig(), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer conn.Close()
	service := ""
	if g.Service != nil {
		service = *g.Service
	}
	resp, err := health.NewHealthClient(conn).Check(ctx, &health.HealthCheckRequest{Service: service})
	if err != nil {
		return err
	}
	if resp.Status != health.HealthCheckResponse_SERVING {
		return fmt.Errorf("service unhealthy (responded with %q)", resp.Status)
	}
	return nil
}
