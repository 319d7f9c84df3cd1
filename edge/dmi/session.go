package dmi

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/dmi"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// session is one registration of a mapper: what it has been told, and a goroutine
// that tells it the rest. Calls go one after the other; a mapper that hangs holds up
// its own session alone.
type session struct {
	registration
	s      *Server
	log    *slog.Logger
	dirty  chan struct{} // capacity 1: marked has grown
	cancel context.CancelFunc
	done   chan struct{} // closed when its goroutine has ended

	mu      sync.Mutex
	marked  map[twin.Key]struct{} // to be looked at
	told    map[twin.Key]told     // devices that the mapper has
	models  map[twin.Key]toldModel
	silent  bool // its devices are offline for that
	answers bool

	// Owned by run.
	client  dmi.DeviceMapperServiceClient
	heard   time.Time             // when the mapper answered last
	refused map[twin.Key]int      // how often it has refused a device
	unsent  map[twin.Key]struct{} // whose configuration was complained of
}

// told is what a mapper knows of a device.
type told struct {
	uid    string
	model  twin.Key
	digest digest
	// sure: the mapper has it as the digest says; else an earlier edgecore has told it
	// something.
	sure bool
}

type toldModel struct {
	digest digest
	sure   bool
}

// mostRefusals is how often a device is offered to a mapper that refuses it, with
// growing pauses; a change of the device begins anew.
const mostRefusals = 8

func (s *Server) newSession(r registration) *session {
	return &session{
		registration: r, s: s, log: s.o.Log.With("mapper", r.Name, "protocol", r.Protocol),
		dirty: make(chan struct{}, 1), done: make(chan struct{}),
		marked: make(map[twin.Key]struct{}), told: make(map[twin.Key]told), models: make(map[twin.Key]toldModel),
		refused: make(map[twin.Key]int), unsent: make(map[twin.Key]struct{}), answers: true,
	}
}

// start puts a session in the place of another. Server.mu is held.
func (s *Server) start(n, before *session) {
	ctx, cancel := context.WithCancel(s.ctx)
	n.cancel = cancel
	if before != nil {
		before.cancel()
	}
	s.sessions[n.Protocol] = n
	s.running.Go(func() {
		defer close(n.done)
		defer cancel()
		if before != nil {
			<-before.done // its last call may be under way
		}
		n.run(ctx)
	})
}

// seed is the answer to a registration that asks for everything; the mapper counts
// as told.
func (n *session) seed(all []device.View) (models []*dmi.DeviceModel, devices []*dmi.Device) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range all {
		if protocolOf(v) != n.Protocol {
			continue
		}
		d, model := n.messages(v)
		modelKey := twin.Key{Namespace: model.Namespace, Name: model.Name}
		if _, has := n.models[modelKey]; !has {
			models = append(models, model)
			n.models[modelKey] = toldModel{digest: digestOf(model), sure: true}
		}
		devices = append(devices, d)
		n.told[v.Key] = told{uid: v.UID, model: modelKey, digest: deviceDigest(d, model), sure: true}
	}
	return models, devices
}

// deviceDigest covers what a mapper acts upon: the spec and the model.
func deviceDigest(d *dmi.Device, model *dmi.DeviceModel) digest { return digestOf(d.Spec, model) }

// messages makes what the mapper is told of a device. n.mu is held.
func (n *session) messages(v device.View) (*dmi.Device, *dmi.DeviceModel) {
	d, err := deviceMessage(v)
	_, complained := n.unsent[v.Key]
	switch {
	case err == nil:
		delete(n.unsent, v.Key)
	case !complained:
		n.unsent[v.Key] = struct{}{}
		n.log.Warn("a part of a device's configuration cannot be sent to its mapper; correct it in the Device", "err", err)
	}
	return d, modelMessage(v.Model)
}

func (n *session) mark(keys ...twin.Key) {
	n.mu.Lock()
	for _, key := range keys {
		n.marked[key] = struct{}{}
		delete(n.refused, key)
	}
	n.mu.Unlock()
	select {
	case n.dirty <- struct{}{}:
	default:
	}
}

// markAll marks every device that the mapper serves, or has served.
func (n *session) markAll(all []device.View) {
	var keys []twin.Key
	for _, v := range all {
		if protocolOf(v) == n.Protocol {
			keys = append(keys, v.Key)
		}
	}
	n.mu.Lock()
	keys = slices.AppendSeq(keys, maps.Keys(n.told))
	n.mu.Unlock()
	n.mark(keys...)
}

func (n *session) describe() Mapper {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Mapper{Name: n.Name, Version: n.Version, Protocol: n.Protocol, Socket: n.Socket, Answers: n.answers, Devices: len(n.told)}
}

// run tells the mapper until ctx ends.
func (n *session) run(ctx context.Context) {
	conn, err := grpc.NewClient("unix://"+n.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(n.bounded),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithDisableHealthCheck(),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		n.log.Error("the mapper's socket cannot be used", "socket", n.Socket, "err", err)
		return
	}
	defer conn.Close()
	n.client = dmi.NewDeviceMapperServiceClient(conn)
	n.heard = time.Now()
	const first = 100 * time.Millisecond
	pause := first // before what is left for later
	probe := time.NewTicker(n.s.o.Silence / 3)
	defer probe.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.dirty:
		case <-retry.C:
		case <-probe.C:
			// Any answer will do: this device there is not.
			_, err := n.client.GetDevice(ctx, &dmi.GetDeviceRequest{})
			if !n.judge(ctx, err) {
				continue
			}
		}
		if n.tell(ctx) {
			retry.Reset(pause)
			pause = min(2*pause, n.s.o.Silence)
		} else {
			pause = first
		}
	}
}

// bounded gives each call its time.
func (n *session) bounded(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, n.s.o.Patience)
	defer cancel()
	return call(ctx, method, req, reply, conn, opts...)
}

// judge learns from the end of a call whether the mapper lives, and says whether the
// call was answered.
func (n *session) judge(ctx context.Context, err error) (answered bool) {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
	default:
		answered = true
	}
	now := time.Now()
	n.mu.Lock()
	n.answers = answered
	if answered {
		n.heard = now
	}
	fell, rose := !answered && !n.silent && now.Sub(n.heard) >= n.s.o.Silence && ctx.Err() == nil, answered && n.silent
	n.silent = n.silent && !rose || fell
	var keys []twin.Key
	if fell {
		keys = sortedKeys(n.told)
	}
	n.mu.Unlock()
	switch {
	case rose:
		n.log.Info("the mapper answers again")
	case fell:
		n.log.Warn("the mapper does not answer: its devices are offline", "silent", now.Sub(n.heard).Round(time.Second), "err", err)
		n.offline(ctx, keys)
	}
	return answered
}

// offline says of devices that nothing can be known of them.
func (n *session) offline(ctx context.Context, keys []twin.Key) {
	for _, key := range keys {
		v, err := n.s.o.Devices.Get(key)
		if err != nil || protocolOf(v) != n.Protocol || v.Twin.State == v1beta1.StateOffline {
			continue
		}
		if _, _, err := n.s.o.Devices.Do(ctx, device.Operation{Key: key, State: v1beta1.StateOffline, Source: n.s}); err != nil {
			n.log.Warn("a device of the silent mapper cannot be set offline", "device", key, "err", err)
		}
	}
}

// tell makes the mapper know what is marked. It says whether something is left for
// later: the mapper does not answer, or refuses a device.
func (n *session) tell(ctx context.Context) (again bool) {
	n.mu.Lock()
	work := n.marked
	n.marked = make(map[twin.Key]struct{})
	before := len(n.told)
	n.mu.Unlock()
	changed := false
	for i, key := range sortedKeys(work) {
		moved, err := n.tellOne(ctx, key)
		changed = changed || moved
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		if !n.judge(ctx, err) {
			n.mu.Lock()
			for _, rest := range sortedKeys(work)[i:] {
				n.marked[rest] = struct{}{}
			}
			n.mu.Unlock()
			again = true
			break
		}
		again = n.refuse(key, err) || again
	}
	n.mu.Lock()
	changed = changed || len(n.told) != before
	n.mu.Unlock()
	if changed {
		n.s.store()
	}
	return again
}

// refuse notes that the mapper has refused a device, and says whether to try again:
// not when it is the device's configuration that it cannot take.
func (n *session) refuse(key twin.Key, err error) (again bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if status.Code(err) == codes.InvalidArgument {
		n.log.Error("the mapper cannot serve a device; correct its configuration in the Device", "device", key, "err", err)
		return false
	}
	n.refused[key]++
	if n.refused[key] == 1 {
		n.log.Warn("the mapper refuses a device", "device", key, "err", err)
	}
	if n.refused[key] >= mostRefusals {
		n.log.Error("the mapper goes on refusing a device, which is left alone until it changes", "device", key, "err", err)
		return false
	}
	n.marked[key] = struct{}{}
	return true
}

// tellOne makes the mapper know one device: its model first, then the device; or
// that it is gone, then its model when no device is left that has it. moved: the
// mapper has one more or one less.
func (n *session) tellOne(ctx context.Context, key twin.Key) (moved bool, err error) {
	n.mu.Lock()
	was, has := n.told[key]
	n.mu.Unlock()
	v, err := n.s.o.Devices.Get(key)
	here := err == nil && protocolOf(v) == n.Protocol
	if has && (!here || was.uid != "" && was.uid != v.UID) {
		if err := n.remove(ctx, key, was); err != nil {
			return false, err
		}
		has, moved = false, true
	}
	if !here {
		return moved, nil
	}
	n.mu.Lock()
	d, model := n.messages(v)
	n.mu.Unlock()
	modelKey := twin.Key{Namespace: model.Namespace, Name: model.Name}
	if err := n.tellModel(ctx, modelKey, model); err != nil {
		return moved, err
	}
	is := told{uid: v.UID, model: modelKey, digest: deviceDigest(d, model), sure: true}
	if has && was.sure && was.digest == is.digest {
		return moved, nil
	}
	if !has || !was.sure {
		_, err := n.client.RegisterDevice(ctx, &dmi.RegisterDeviceRequest{Device: d})
		if err != nil {
			return moved, fmt.Errorf("register device %s: %w", key, err)
		}
	}
	if has {
		// Mappers take no notice of the registration of a device that they have.
		if _, err := n.client.UpdateDevice(ctx, &dmi.UpdateDeviceRequest{Device: d}); err != nil {
			return moved, fmt.Errorf("update device %s: %w", key, err)
		}
	}
	n.judge(ctx, nil)
	n.mu.Lock()
	n.told[key] = is
	delete(n.refused, key)
	n.mu.Unlock()
	if has && was.model != modelKey {
		return true, n.removeModel(ctx, was.model)
	}
	return moved || !has, nil
}

func (n *session) tellModel(ctx context.Context, key twin.Key, model *dmi.DeviceModel) error {
	n.mu.Lock()
	was, has := n.models[key]
	n.mu.Unlock()
	is := toldModel{digest: digestOf(model), sure: true}
	if has && was == is {
		return nil
	}
	if !has || !was.sure {
		if _, err := n.client.CreateDeviceModel(ctx, &dmi.CreateDeviceModelRequest{Model: model}); err != nil {
			return fmt.Errorf("create device model %s: %w", key, err)
		}
	}
	if has {
		if _, err := n.client.UpdateDeviceModel(ctx, &dmi.UpdateDeviceModelRequest{Model: model}); err != nil {
			return fmt.Errorf("update device model %s: %w", key, err)
		}
	}
	n.mu.Lock()
	n.models[key] = is
	n.mu.Unlock()
	return nil
}

// remove takes a device from the mapper. That the mapper does not know it is as good.
func (n *session) remove(ctx context.Context, key twin.Key, was told) error {
	_, err := n.client.RemoveDevice(ctx, &dmi.RemoveDeviceRequest{DeviceName: key.Name, DeviceNamespace: key.Namespace})
	if err != nil && !n.judge(ctx, err) {
		return fmt.Errorf("remove device %s: %w", key, err)
	}
	if err != nil {
		n.log.Info("the mapper did not remove a device", "device", key, "err", err)
	}
	n.mu.Lock()
	delete(n.told, key)
	n.mu.Unlock()
	return n.removeModel(ctx, was.model)
}

// removeModel takes a model from the mapper when no device has it any more.
func (n *session) removeModel(ctx context.Context, key twin.Key) error {
	n.mu.Lock()
	_, has := n.models[key]
	for _, t := range n.told {
		has = has && t.model != key
	}
	n.mu.Unlock()
	if !has {
		return nil
	}
	_, err := n.client.RemoveDeviceModel(ctx, &dmi.RemoveDeviceModelRequest{ModelName: key.Name, ModelNamespace: key.Namespace})
	if err != nil && !n.judge(ctx, err) {
		return fmt.Errorf("remove device model %s: %w", key, err)
	}
	n.mu.Lock()
	delete(n.models, key)
	n.mu.Unlock()
	return nil
}
