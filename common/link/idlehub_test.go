package link_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/common/link"
	"github.com/holdfast-edge/holdfast/common/link/linktest"
	"github.com/holdfast-edge/holdfast/common/pki"
)

// childEnv tells the test binary that it is an edge in a process of its own, and
// which (child).
const childEnv = "HOLDFAST_LINK_CHILD"

// child is what such an edge does: it dials so often, says "connected" on standard
// output, and lives until its standard input ends.
type child struct {
	Hub, Transport string
	Times          int
	CA, Cert, Key  []byte
}

func TestMain(m *testing.M) {
	text := os.Getenv(childEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var c child
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = c.run()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func (c child) run() error {
	pool, err := pki.Pool(c.CA)
	if err != nil {
		return err
	}
	pair, err := pki.KeyPair(c.Cert, c.Key)
	if err != nil {
		return err
	}
	dial := map[string]func(link.DialOptions) link.Dialer{
		"websocket": link.DialWebsocket, "quic": link.DialQUIC, "auto": link.DialAuto,
	}[c.Transport]
	dialer := dial(link.DialOptions{Hubs: []string{c.Hub}, RootCAs: pool, Timing: quiet(),
		Certificate: func() (tls.Certificate, error) { return pair, nil }})
	for range c.Times {
		conn, err := dialer.Dial(context.Background())
		if err != nil {
			return err
		}
		go func() { _, _ = conn.Recv(context.Background()) }()
	}
	fmt.Println("connected")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// start runs an edge in a process of its own until the test ends.
func (c child) start(t testing.TB, ca *pki.CA, env ...string) {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, "pi-1", linktest.Patience*30)
	if err != nil {
		t.Fatal(err)
	}
	c.CA, c.Cert, c.Key = ca.CertPEM, cert, key
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(os.Args[0])
	command.Env = append(append(os.Environ(), childEnv+"="+string(text)), env...)
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = command.Wait()
	})
	if said, err := bufio.NewReader(out).ReadString('\n'); strings.TrimSpace(said) != "connected" {
		t.Fatalf("the edge says %q, %v", said, err)
	}
}

// BenchmarkIdleHub reports what one idle connection takes at the hub alone: the
// edges are in another process. HOLDFAST_HEAP=FILE leaves a profile of the heap
// with all connections open.
func BenchmarkIdleHub(b *testing.B) {
	for _, transport := range []string{"websocket", "quic"} {
		b.Run(transport, func(b *testing.B) {
			ca := linktest.NewCA(b)
			hub := linktest.StartHub(b, ca, quiet())
			if transport == "quic" {
				hub = linktest.StartGuardedQUICHub(b, ca, quiet(), nil).Hub // as cloudcore has it: without edges' streams
			}
			const warm, n = 50, 1000
			took := make(chan link.Conn, n)
			go func() {
				for {
					c, err := hub.Accept(b.Context())
					if err != nil {
						return
					}
					go func() { _, _ = c.Recv(context.Background()) }()
					took <- c
				}
			}()
			var conns []link.Conn
			add := func(times int) {
				child{Hub: hub.Addr, Transport: transport, Times: times}.start(b, ca)
				for range times {
					conns = append(conns, <-took)
				}
			}
			add(warm)
			for b.Loop() {
				before, goroutines := footprint(), runtime.NumGoroutine()
				add(n)
				after := footprint()
				b.ReportMetric(float64(after.heap-before.heap)/1024/n, "heap-KiB/conn")
				b.ReportMetric(float64(after.stack-before.stack)/1024/n, "stack-KiB/conn")
				b.ReportMetric(float64(after.inUse-before.inUse)/1024/n, "KiB/conn")
				b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/n, "goroutines/conn")
				if path := os.Getenv("HOLDFAST_HEAP"); path != "" {
					f, err := os.Create(path + "." + transport)
					if err != nil {
						b.Fatal(err)
					}
					_ = pprof.Lookup("heap").WriteTo(f, 0)
					_ = f.Close()
				}
			}
			for _, c := range conns {
				_ = c.Close()
			}
		})
	}
}

type memory struct{ heap, stack, inUse uint64 }

func footprint() memory {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return memory{m.HeapAlloc, m.StackInuse, m.HeapInuse + m.StackInuse}
}
