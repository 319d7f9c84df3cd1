package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// logs is how fast a log of a container that has ended is read.
func (s *streamBench) logs(ctx context.Context) error {
	text, size := logText()
	for _, e := range s.ends {
		file, err := e.log()
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, text, 0o640); err != nil {
			return err
		}
	}
	for _, w := range ways {
		took := map[*end][]time.Duration{}
		for range streamRounds {
			err := s.byTurns(w, func(e *end) error {
				began := time.Now()
				got, err := s.readLog(ctx, e, w)
				if err == nil && got != size {
					err = fmt.Errorf("read the log on node %s %s: %d bytes, want %d", e.node, w.name, got, size)
				}
				took[e] = append(took[e], time.Since(began))
				return err
			})
			if err != nil {
				return err
			}
		}
		s.add("logs of 100 MB, "+w.name, "70 %", w, func(e *end) string { return s.rate(e, size, took) })
	}
	return nil
}

// logText is a log as a runtime writes it, and how many bytes its reader gets. Its words are by chance, so
// that it compresses as logs do.
func logText() (text []byte, size int64) {
	words := strings.Fields("GET POST /api/v1/orders /healthz /metrics 200 404 503 customer item retry timeout connected closed upstream cache miss hit took ms user")
	random := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for at := time.Unix(1_700_000_000, 0).UTC(); b.Len() < logBytes; at = at.Add(time.Duration(random.IntN(2_000_000))) {
		fmt.Fprintf(&b, "%s stdout F ", at.Format("2006-01-02T15:04:05.000000000Z07:00"))
		before := b.Len()
		fmt.Fprintf(&b, "%08x", random.Uint32())
		for range 4 + random.IntN(12) {
			fmt.Fprintf(&b, " %s=%d", words[random.IntN(len(words))], random.IntN(10_000))
		}
		b.WriteByte('\n')
		size += int64(b.Len() - before)
	}
	return b.Bytes(), size
}

func (s *streamBench) readLog(ctx context.Context, e *end, w way) (int64, error) {
	var body io.ReadCloser
	var err error
	if w.direct {
		client, failed := rest.HTTPClientFor(e.direct)
		if failed != nil {
			return 0, failed
		}
		request, failed := http.NewRequestWithContext(ctx, http.MethodGet, e.direct.Host+"/containerLogs/default/talker-"+e.node+"/main", nil)
		if failed != nil {
			return 0, failed
		}
		response, failed := client.Do(request)
		if failed != nil {
			return 0, failed
		}
		body = response.Body
	} else {
		body, err = s.world.Client().CoreV1().Pods("default").GetLogs("talker-"+e.node, &corev1.PodLogOptions{}).Stream(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("read the log on node %s: %w", e.node, err)
	}
	defer body.Close()
	return io.Copy(io.Discard, body)
}

// copies is how fast kubectl cp copies, which is exec of tar.
func (s *streamBench) copies(ctx context.Context) error {
	archive, err := noiseTar()
	if err != nil {
		return err
	}
	for _, w := range ways {
		in, out := map[*end][]time.Duration{}, map[*end][]time.Duration{}
		for range streamRounds {
			err := s.byTurns(w, func(e *end) error {
				began := time.Now()
				if err := s.copyIn(ctx, e, w, archive); err != nil {
					return err
				}
				in[e] = append(in[e], time.Since(began))
				began = time.Now()
				if err := s.copyOut(ctx, e, w); err != nil {
					return err
				}
				out[e] = append(out[e], time.Since(began))
				return nil
			})
			if err != nil {
				return err
			}
		}
		s.add("cp of 200 MB into a pod, "+w.name, "70 %", w, func(e *end) string { return s.rate(e, copyBytes, in) })
		s.add("cp of 200 MB out of a pod, "+w.name, "70 %", w, func(e *end) string { return s.rate(e, copyBytes, out) })
	}
	return nil
}

func (s *streamBench) copyIn(ctx context.Context, e *end, w way, archive []byte) error {
	return s.exec(ctx, e, w, bytes.NewReader(archive), io.Discard, "tar", "xmf", "-", "-C", "/data")
}

func (s *streamBench) copyOut(ctx context.Context, e *end, w way) error {
	var got counter
	if err := s.exec(ctx, e, w, nil, &got, "tar", "cf", "-", "-C", "/data", "file"); err != nil {
		return err
	}
	if got.bytes < copyBytes {
		return fmt.Errorf("copy out of node %s %s: %d bytes came", e.node, w.name, got.bytes)
	}
	return nil
}

// noiseTar is an archive of one file that no compression makes smaller.
func noiseTar() ([]byte, error) {
	noise := make([]byte, copyBytes)
	if _, err := rand.NewChaCha8([32]byte{1}).Read(noise); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(copyBytes + 4096)
	t := tar.NewWriter(&b)
	if err := t.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: copyBytes, Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	if _, err := t.Write(noise); err != nil {
		return nil, err
	}
	return b.Bytes(), t.Close()
}

const forwarded = 200 // connections at once

// forwards is how long one kubectl port-forward takes until every one of many connections, all open at once,
// has had 64 KiB echoed.
func (s *streamBench) forwards(ctx context.Context) error {
	for _, w := range ways {
		took := map[*end][]time.Duration{}
		for range streamRounds {
			err := s.byTurns(w, func(e *end) error {
				d, err := s.forward(ctx, e, w)
				took[e] = append(took[e], d)
				return err
			})
			if err != nil {
				return err
			}
		}
		s.add(fmt.Sprintf("%d forwarded connections at once, %s", forwarded, w.name), "all answer", w, func(e *end) string {
			return s.beside(e, median(took[e]), median(took[s.ends[0]]))
		})
	}
	return nil
}

func (s *streamBench) forward(ctx context.Context, e *end, w way) (time.Duration, error) {
	config, u, err := s.url(e, w, "portforward", url.Values{})
	if err != nil {
		return 0, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return 0, err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	if !w.direct {
		if dialer, err = portforward.NewSPDYOverWebsocketDialer(u, config); err != nil {
			return 0, err
		}
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	var failed limited
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:9000"}, stop, ready, io.Discard, &failed)
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	defer func() { close(stop); <-ended }()
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		return 0, fmt.Errorf("forward a port of node %s %s: %w", e.node, w.name, err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	var open sync.WaitGroup
	open.Add(forwarded)
	group, ctx := errgroup.WithContext(ctx)
	for range forwarded {
		group.Go(func() error { return echo(ctx, fmt.Sprintf("127.0.0.1:%d", ports[0].Local), &open) })
	}
	if err := group.Wait(); err != nil {
		return 0, fmt.Errorf("forward a port of node %s %s: %w: %s", e.node, w.name, err, failed.text)
	}
	return time.Since(began), nil
}

// echo sends a line and waits for it, waits until all others have theirs, and has 64 KiB echoed.
func echo(ctx context.Context, address string, open *sync.WaitGroup) error {
	arrived := sync.OnceFunc(open.Done)
	defer arrived()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for _, size := range []int{16, 64 << 10} {
		sent := bytes.Repeat([]byte{'x'}, size)
		go func() { _, _ = conn.Write(sent) }() // what is not written does not come back
		if _, err := io.ReadFull(conn, make([]byte, size)); err != nil {
			return fmt.Errorf("an echo of %d bytes: %w", size, err)
		}
		arrived()
		open.Wait()
	}
	return nil
}

const deliveriesEach = 200 // changes of a pod in each state of the line

// deliveries is how long the change of a pod takes from the patch until its volume shows it on the node: with
// the line at rest, while a file is copied elsewhere, and while one is copied through the line, again and again.
func (s *streamBench) deliveries(ctx context.Context) error {
	archive, err := noiseTar()
	if err != nil {
		return err
	}
	for _, e := range s.ends { // what the copies out of the pods copy
		if e.hop {
			continue
		}
		if err := s.copyIn(ctx, e, ways[0], archive); err != nil {
			return err
		}
	}
	in := func(ctx context.Context, e *end) error { return s.copyIn(ctx, e, ways[0], archive) }
	out := func(ctx context.Context, e *end) error { return s.copyOut(ctx, e, ways[0]) }
	busy := []struct {
		name     string
		copy     func(context.Context, *end) error
		megabits int // of the line; 0: the copy takes all of the machine's processors, and no line is so fast
	}{
		{"at rest", nil, 0},
		// What the copy costs the machine that all share, without the line.
		{"with a cp into the kubelet's pod", func(ctx context.Context, _ *end) error { return s.copyIn(ctx, s.ends[0], ways[0], archive) }, 0},
		{"with a cp out of a pod", out, 0},
		{"at rest, line of 100 Mbit/s", nil, 100},
		{"with a cp out of a pod, line of 100 Mbit/s", out, 100},
		// Last: one that is broken off leaves half a file.
		{"with a cp into a pod", in, 0},
		{"with a cp into a pod, line of 100 Mbit/s", in, 100},
	}
	for i, state := range busy {
		took := map[*end][]time.Duration{}
		for _, e := range s.ends {
			if e.edge == nil {
				continue // a kubelet looks at such volumes once a minute
			}
			if state.megabits > 0 {
				err = e.edge.Netns.Shape(state.megabits)
			}
			if err == nil {
				took[e], err = s.deliver(ctx, e, state.copy, i*deliveriesEach)
			}
			if state.megabits > 0 {
				err = errors.Join(err, e.edge.Netns.Shape(0))
			}
			if err != nil {
				return err
			}
		}
		for _, share := range []float64{0.5, 0.99} {
			aim := ""
			if share == 0.99 && state.copy != nil && i > 1 {
				aim = "50 ms"
			}
			s.add(fmt.Sprintf("a pod's change on its node, %s, p%.0f", state.name, share*100), aim, ways[0], func(e *end) string {
				if e.edge == nil {
					return "-"
				}
				return ms(percentile(took[e], share))
			})
		}
	}
	return nil
}

func (s *streamBench) deliver(ctx context.Context, e *end, copying func(context.Context, *end) error, first int) (took []time.Duration, err error) {
	pods := s.world.Client().CoreV1().Pods("default")
	name := streamPod + "-" + e.node
	pod, err := pods.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(e.edge.DataDir(), "pods", string(pod.UID), "volumes", "*", "down", "labels"))
	if err != nil || len(files) != 1 {
		return nil, fmt.Errorf("the labels of pod %s are in %d files, want one: %w", name, len(files), err)
	}
	if copying != nil {
		group, within := errgroup.WithContext(ctx)
		within, stop := context.WithCancel(within)
		group.Go(func() error {
			for within.Err() == nil {
				if err := copying(within, e); err != nil && within.Err() == nil {
					return err
				}
			}
			return nil
		})
		defer func() {
			stop()
			if failed := group.Wait(); err == nil {
				err = failed
			}
		}()
	}
	for change := range deliveriesEach {
		want := fmt.Sprintf(`round="%d"`, first+change+1)
		patch := fmt.Sprintf(`{"metadata":{"labels":{"round":"%d"}}}`, first+change+1)
		began := time.Now()
		if _, err := pods.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			return nil, err
		}
		for {
			text, err := os.ReadFile(files[0])
			if err == nil && strings.Contains(string(text), want) {
				break
			}
			if time.Since(began) > patience {
				return nil, fmt.Errorf("pod %s: %s is not on the node after %s", name, want, patience)
			}
			time.Sleep(200 * time.Microsecond) // it adds as much to a figure at most
		}
		took = append(took, time.Since(began))
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return took, nil
}
