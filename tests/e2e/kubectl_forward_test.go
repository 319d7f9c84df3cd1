package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/tests/scene"
)

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) ->`)

// forward runs kubectl port-forward and returns the address at this end.
func (w way) forward(pod string, port int) (address string, call *scene.Call) {
	w.Helper()
	call = w.Call(nil, "port-forward", "pod/"+pod, fmt.Sprintf(":%d", port))
	call.SaysWhere("forwards", func(out string) bool { return forwarding.MatchString(out) })
	return forwarding.FindStringSubmatch(call.Out.String())[1], call
}

// listening is a probe that finds listeners, and does not connect.
func listening(ports ...int) *corev1.Probe {
	var checks []string
	for _, port := range ports {
		checks = append(checks, fmt.Sprintf("netstat -ltn | grep -q :%d", port))
	}
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: scene.Shell(strings.Join(checks, " && "))}}, PeriodSeconds: 1, FailureThreshold: 1000,
	}
}

// request asks for a page by a connection of its own.
func request(address, path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: scene.Patience}
	response, err := client.Get("http://" + address + path)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.Join(errors.New(response.Status), response.Body.Close())
	}
	return response, err
}

// fetch gets a page.
func fetch(address, path string) ([]byte, error) {
	response, err := request(address, path)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func TestKubectlPortForward(t *testing.T) {
	twoWays(t, func(w way) {
		for _, host := range []bool{false, true} {
			name, port := "cni", 8080
			if host {
				// Its own for each way: they share the node's ports.
				name, port = "host", 20000+int(time.Now().UnixNano()/1000%9000)
			}
			pod := w.pod(name, func(p *corev1.Pod) {
				p.Spec.HostNetwork = host
				p.Spec.Containers[0].Command = scene.Shell(fmt.Sprintf(
					"mkdir /www; cd /www; echo here > index.html; dd if=/dev/urandom of=big bs=64k count=16 2>/dev/null; touch /ready; httpd -f -p %d", port))
				p.Spec.Containers[0].ReadinessProbe = listening(port)
			})
			address, call := w.forward(pod, port)
			if page, err := fetch(address, "/"); err != nil || string(page) != "here\n" {
				w.Errorf("%s: %q, %v", name, page, err)
			}
			want := strings.Fields(w.Do("exec", pod, "--", "sha256sum", "/www/big"))[0]
			w.crowd(address, want)
			if w.Failed() {
				w.Logf("kubectl port-forward said %q", call.Err.String())
			}
		}
	})
}

// crowd fetches a file over 50 connections that are all open at one time. Few are on their
// way at once: busybox's httpd lets no more than nine wait, and the kernel resets some of
// those beyond.
func (w way) crowd(address, checksum string) {
	w.Helper()
	var arrived, crowd sync.WaitGroup
	arrive := make(chan struct{}, 5)
	for range 50 {
		arrived.Add(1)
		crowd.Go(func() {
			arrive <- struct{}{}
			response, err := request(address, "/big")
			<-arrive
			arrived.Done()
			if err != nil {
				w.Errorf("one of 50 connections: %v", err)
				return
			}
			defer response.Body.Close()
			arrived.Wait()
			sum := sha256.New()
			n, err := io.Copy(sum, response.Body)
			if got := fmt.Sprintf("%x", sum.Sum(nil)); err != nil || got != checksum {
				w.Errorf("one of 50 connections: %d bytes with checksum %s, want %s: %v", n, got, checksum, err)
			}
		})
	}
	crowd.Wait()
}

// TestKubectlPortForwardHalfClose: one side that has said all it has to say still hears the answer.
func TestKubectlPortForwardHalfClose(t *testing.T) {
	twoWays(t, func(w way) {
		pod := w.pod("half", func(p *corev1.Pod) {
			p.Spec.Containers[0].Command = scene.Shell(`
				echo 'sleep 3; head -c 1048576 | sha256sum; echo so long' > /answer; chmod +x /answer
				nc -ll -p 9000 -e sh /answer & nc -ll -p 9001 -e sh -c 'wc -c; echo counted' & wait`)
			p.Spec.Containers[0].ReadinessProbe = listening(9000, 9001)
		})
		payload := noise(1 << 20)
		ask := func(port int) (answer string, err error) {
			address, call := w.forward(pod, port)
			defer func() {
				if answer == "" {
					w.Logf("kubectl port-forward said %q %q", call.Out.String(), call.Err.String())
				}
				call.Signal(syscall.SIGKILL)
			}()
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return "", err
			}
			defer conn.Close()
			if _, err := io.Copy(conn, bytes.NewReader(payload)); err != nil {
				return "", err
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				return "", err
			}
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			b, err := io.ReadAll(conn)
			return string(b), err
		}
		if got, err := ask(9000); err != nil || got != fmt.Sprintf("%x  -\nso long\n", sha256.Sum256(payload)) {
			w.Errorf("the answer three seconds after the question's end: %q, %v", got, err)
		}
		if got, err := ask(9001); err != nil || got != "1048576\ncounted\n" {
			w.Errorf("the answer of one who reads to the end: %q, %v", got, err)
		}

		// A port at which nobody listens: said at this end.
		address, call := w.forward(pod, 9999)
		if page, err := fetch(address, "/"); err == nil {
			w.Errorf("nobody listens, and %q came", page)
		}
		w.Until("kubectl says why", func(context.Context) (bool, error) {
			return strings.Contains(call.Err.String(), "refused"), nil
		})
	})
}
