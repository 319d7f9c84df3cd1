package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/credential"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// statusPatience is how long the status waits for each thing that may hang. All are
// asked at once.
const statusPatience = 2 * time.Second

// questions are what the status asks of others than edgecore itself.
type questions struct {
	runtime question[runtime.Info]
	images  question[[]runtime.NodeImage]
	store   question[stored]
	disk    question[unix.Statfs_t]
}

// question is asked once at a time: who asks while it is being answered waits for the
// same answer, so that one that hangs for ever costs one goroutine.
type question[T any] struct {
	mu     sync.Mutex
	asking *answer[T]
}

type answer[T any] struct {
	done  chan struct{}
	value T
	err   error
}

func (q *question[T]) ask(ctx context.Context, find func(context.Context) (T, error)) *answer[T] {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asking != nil {
		return q.asking
	}
	a := &answer[T]{done: make(chan struct{})}
	q.asking = a
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusPatience)
		defer cancel()
		a.value, a.err = find(ctx)
		q.mu.Lock()
		q.asking = nil
		q.mu.Unlock()
		close(a.done)
	}()
	return a
}

// wait returns the answer, or that there is none in time.
func (a *answer[T]) wait(ctx context.Context) (none T, err error) {
	select {
	case <-a.done:
		return a.value, a.err
	case <-ctx.Done():
		return none, fmt.Errorf("no answer within %s", statusPatience)
	}
}

// stored is what the database is asked.
type stored struct {
	store.Summary
	pending bool // the node's own status waits
}

// status is what `holdfast status` shows. It is worked out when somebody asks, and
// needs neither the hub nor a container runtime that answers.
func (e *engine) status(ctx context.Context, started time.Time) localstatus.Status {
	info := e.questions.runtime.ask(ctx, e.runtimeInfo)
	images := e.questions.images.ask(ctx, e.listImages)
	memory := e.questions.store.ask(ctx, e.summarizeStore)
	disk := e.questions.disk.ask(ctx, e.statDisk)
	ctx, cancel := context.WithTimeout(ctx, statusPatience+statusPatience/4) // those who asked have given up by then
	defer cancel()

	now := e.clock.Wall()
	s := localstatus.Status{Node: e.cfg.NodeName, Version: version, Started: sameAge(started, now), Now: now.UTC()}
	s.Ready, s.ReadyReason = e.node.Ready()
	s.Line = e.lineStatus(now)
	s.Clock = e.clockStatus()
	s.Certificate = certificateStatus(e.credential, now)
	s.Pods = e.podStatus(ctx)
	found, err := memory.wait(ctx)
	s.Outbox, s.Waiting, s.Store = e.storeStatus(found, err)
	s.NodeReported = err == nil && e.node.Reported() && !found.pending
	s.Disk = diskStatus(ctx, e.cfg.DataDir, disk)
	s.Disk.Reserve = found.Reserve
	s.Runtime = e.runtimeStatus(ctx, info)
	s.Images = imageStatus(ctx, images, s.Pods)
	return s
}

// sameAge is when, by the clock that says now, something was whose age this process
// has counted: clocks are set while it runs.
func sameAge(t, now time.Time) time.Time { return now.Add(-time.Since(t)).UTC() }

func (e *engine) lineStatus(now time.Time) localstatus.Line {
	line, m := e.line.State(), e.line.Measure()
	l := localstatus.Line{
		Connected: line.Connected, Since: sameAge(line.Since, now), Hub: line.Hub, Transport: line.Transport, Synced: line.Synced, LastError: line.LastError,
		RTTMillis: float64(m.RTT.Microseconds()) / 1000, Sessions: m.Sessions,
		Session:  localstatus.Bytes{Sent: m.Session.Sent, Received: m.Session.Received},
		Messages: localstatus.Bytes{Sent: m.Sent, Received: m.Received},
	}
	if !line.HeldUntil.IsZero() {
		l.HeldUntil = sameAge(line.HeldUntil, now)
	}
	return l
}

// behindBy is how far the machine's clock may be behind the hub's before it is said.
const behindBy = time.Minute

func (e *engine) clockStatus() localstatus.Clock {
	system := time.Now()
	c := localstatus.Clock{System: system.UTC()}
	if hub, ok := e.line.HubTime(); ok {
		hub = hub.Round(0) // the wall clocks are compared, not when they were read
		off := system.Round(0).Sub(hub)
		hub = hub.UTC()
		c.Hub, c.OffSeconds, c.Behind = &hub, off.Round(time.Millisecond).Seconds(), off < -behindBy
	}
	return c
}

func certificateStatus(c *credential.Credential, now time.Time) localstatus.Certificate {
	d, err := c.Dates()
	if err != nil {
		out := localstatus.Certificate{State: localstatus.CertificateMissing, Problem: err.Error()}
		if !errors.Is(err, enrollment.ErrNotJoined) {
			out.State = "unreadable"
		}
		return out
	}
	out := localstatus.Certificate{State: localstatus.CertificateValid, Node: d.Node, Issued: d.Issued.UTC(), RenewalDue: d.RenewalDue.UTC(), Ends: d.Ends.UTC()}
	switch {
	case !now.Before(d.Ends):
		out.State = localstatus.CertificateEnded
	case !now.Before(d.RenewalDue):
		out.State = localstatus.CertificateRenewalDue
	}
	return out
}

func (e *engine) summarizeStore(ctx context.Context) (stored, error) {
	sum, err := e.store.Summary(ctx)
	if err != nil {
		return stored{Summary: sum}, err
	}
	pending, err := e.store.Pending(ctx, wire.ReportKind_REPORT_NODE, e.cfg.NodeName)
	return stored{sum, pending}, err
}

func (e *engine) storeStatus(found stored, err error) (outbox int, w localstatus.Waiting, s localstatus.Store) {
	s = localstatus.Store{
		Path: databasePath(e.cfg), Bytes: found.Database + found.Log, LogBytes: found.Log, EventsDropped: found.EventsDropped,
		Kinds: map[string]int64{}, CopyBytes: found.Copy, Copied: moment(found.CopyTime),
		Recovery: recoveryText(e.store.Opened().Recovery), SyncedOnce: e.store.SyncedOnce(), Problem: problem(err),
	}
	for kind, n := range found.Objects {
		s.Objects += int(n)
		s.Kinds[kindName(kind)] += n
	}
	w = localstatus.Waiting{Reports: map[string]int64{}, Values: found.Values, Messages: found.Messages, Oldest: moment(found.Oldest)}
	for kind, n := range found.Reports {
		outbox += int(n)
		w.Reports[camel(strings.TrimPrefix(kind.String(), "REPORT_"))] += n
	}
	return outbox, w, s
}

// kindName is how people and Kubernetes call many of a kind: configMaps.
func kindName(kind wire.Kind) string { return camel(strings.TrimPrefix(kind.String(), "KIND_")) + "s" }

func camel(words string) string {
	out := ""
	for word := range strings.SplitSeq(strings.ToLower(words), "_") {
		if out != "" && word != "" {
			word = strings.ToUpper(word[:1]) + word[1:]
		}
		out += word
	}
	return out
}

func (e *engine) statDisk(context.Context) (fs unix.Statfs_t, err error) {
	return fs, unix.Statfs(e.cfg.DataDir, &fs)
}

func diskStatus(ctx context.Context, path string, disk *answer[unix.Statfs_t]) localstatus.Disk {
	fs, err := disk.wait(ctx)
	return localstatus.Disk{Path: path, Bytes: fs.Blocks * uint64(fs.Bsize), Free: fs.Bavail * uint64(fs.Bsize), Problem: problem(err)}
}

func (e *engine) runtimeStatus(ctx context.Context, asked *answer[runtime.Info]) localstatus.Runtime {
	info, err := asked.wait(ctx)
	r := localstatus.Runtime{Endpoint: e.cfg.ContainerRuntimeEndpoint, Name: info.Name, Version: info.Version, Answers: err == nil, Ready: info.Ready && info.NetworkReady, Problem: info.Reason}
	if err != nil {
		r.Ready, r.Problem = false, err.Error()
	}
	return r
}

func (e *engine) listImages(ctx context.Context) ([]runtime.NodeImage, error) {
	rt := e.runtime.Load()
	if rt == nil {
		return nil, errors.New("the container runtime has not answered yet")
	}
	return rt.Images(ctx)
}

func imageStatus(ctx context.Context, asked *answer[[]runtime.NodeImage], pods []localstatus.PodSummary) localstatus.Images {
	list, err := asked.wait(ctx)
	out := localstatus.Images{List: []localstatus.Image{}, Problem: problem(err)}
	byName := map[string]int{}
	for _, image := range list {
		names := slices.SortedStableFunc(slices.Values(image.Names), func(a, b string) int { return digest(a) - digest(b) })
		for _, name := range append(names, image.ID) {
			byName[name] = len(out.List)
		}
		out.List = append(out.List, localstatus.Image{ID: image.ID, Names: names, Bytes: image.Size, Pinned: image.Pinned})
		out.Bytes += image.Size
	}
	for _, p := range pods {
		for _, c := range p.Containers {
			at, ok := byName[c.ImageID]
			if !ok {
				at, ok = byName[c.Image]
			}
			if ok && c.ID != "" {
				out.List[at].Containers++
			}
		}
	}
	slices.SortStableFunc(out.List, func(a, b localstatus.Image) int { return strings.Compare(imageName(a), imageName(b)) })
	return out
}

// digest is 1 for a name with a digest, which is none for people.
func digest(name string) int {
	if strings.Contains(name, "@") {
		return 1
	}
	return 0
}

func imageName(i localstatus.Image) string { return append(slices.Clone(i.Names), i.ID)[0] }

// podStatus lists the pods. Before the runtime has answered for the first time nothing
// is known but which there are.
func (e *engine) podStatus(ctx context.Context) []localstatus.PodSummary {
	out := []localstatus.PodSummary{}
	if manager := e.pods.Load(); manager != nil {
		for _, p := range manager.Snapshot() {
			out = append(out, podDocument(p))
		}
		return out
	}
	pods, err := e.store.Pods(ctx)
	if err != nil {
		return out // the store says so itself
	}
	for _, p := range pods {
		out = append(out, localstatus.PodSummary{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Reason: "NoContainerRuntime",
			Message: "it is looked at once the container runtime answers", Created: moment(p.CreationTimestamp.Time), Containers: []localstatus.Container{}})
	}
	slices.SortFunc(out, func(a, b localstatus.PodSummary) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return out
}

func podDocument(p pod.Summary) localstatus.PodSummary {
	out := localstatus.PodSummary{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, Phase: p.Phase, Ready: p.Ready, Restarts: p.Restarts, Reason: p.Reason, Message: p.Message,
		Created: moment(p.Created), Started: moment(p.Started), IP: p.IP, HostNetwork: p.HostNetwork, DefaultContainer: p.DefaultContainer,
		Containers: []localstatus.Container{},
	}
	for _, c := range p.Containers {
		d := localstatus.Container{
			Name: c.Name, Kind: c.Kind, State: c.State, Reason: c.Reason, Message: c.Message, Ready: c.Ready, Restarts: c.Restarts,
			Image: c.Image, ImageID: c.ImageID, ID: c.ID, Started: moment(c.Started), Finished: moment(c.Finished),
		}
		if c.State == localstatus.StateExited {
			code := c.ExitCode
			d.ExitCode = &code
		}
		if c.Last != nil {
			d.Last = &localstatus.Ending{Reason: c.Last.Reason, Message: c.Last.Message, ExitCode: c.Last.ExitCode, At: moment(c.Last.At)}
		}
		out.Containers = append(out.Containers, d)
	}
	return out
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func problem(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
