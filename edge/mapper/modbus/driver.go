package modbus

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/edge/mapper"
)

// Up takes what was read; mapper.Mapper is one.
type Up interface {
	Values(key mapper.Key, values ...mapper.Value)
	State(key mapper.Key, s mapper.State)
}

// Options are what a Driver needs.
type Options struct {
	Up  Up
	Log *slog.Logger
	// Pause is the first pause after a failure, which doubles up to Longest; 0 means
	// 500 ms and 15 s.
	Pause, Longest time.Duration
}

// Driver serves Modbus devices. Each address has a line of its own.
type Driver struct {
	o Options

	mu      sync.Mutex
	ctx     context.Context // of Run
	devices map[mapper.Key]endpoint
	lines   map[endpoint]*line
	waiting map[mapper.Key]config // set before Run
	running sync.WaitGroup
}

// New returns a Driver that serves nothing until Run.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Pause == 0 {
		o.Pause = 500 * time.Millisecond
	}
	if o.Longest == 0 {
		o.Longest = 15 * time.Second
	}
	return &Driver{
		o: o, devices: make(map[mapper.Key]endpoint), lines: make(map[endpoint]*line), waiting: make(map[mapper.Key]config),
	}
}

// Run serves until ctx ends, and returns when all connections are closed.
func (d *Driver) Run(ctx context.Context) error {
	d.mu.Lock()
	d.ctx = ctx
	for key, c := range d.waiting {
		d.place(key, c)
	}
	d.waiting = nil
	d.mu.Unlock()
	<-ctx.Done()
	d.mu.Lock()
	d.ctx = nil
	d.mu.Unlock()
	d.running.Wait()
	return nil
}

// Set takes a device; see mapper.Driver. Properties that are wrong are told of in the
// log, and the others served.
func (d *Driver) Set(device mapper.Device) error {
	c, problems, err := parse(device)
	if err == nil && len(c.points) == 0 && len(problems) > 0 {
		err = errors.Join(problems...)
	}
	if err != nil {
		d.Remove(device.Key)
		return err
	}
	for _, problem := range problems {
		d.o.Log.Error("a property is not served; correct its configuration in the Device", "device", device.Key, "err", problem)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if was, has := d.devices[device.Key]; has && was != c.endpoint {
		d.drop(device.Key)
	}
	d.devices[device.Key] = c.endpoint
	if d.waiting != nil {
		d.waiting[device.Key] = c
		return nil
	}
	d.place(device.Key, c)
	return nil
}

// Remove forgets a device.
func (d *Driver) Remove(key mapper.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop(key)
}

// place gives a device to its line, which is made when there is none. d.mu is held.
func (d *Driver) place(key mapper.Key, c config) {
	if d.ctx == nil {
		return // the end
	}
	l := d.lines[c.endpoint]
	if l == nil {
		l = newLine(c.endpoint, d.o)
		d.lines[c.endpoint] = l
		ctx, cancel := context.WithCancel(d.ctx)
		l.end = cancel
		d.running.Go(func() { l.run(ctx) })
	}
	l.change(key, &c)
}

// drop takes a device from its line, and ends a line that has no other. d.mu is held.
func (d *Driver) drop(key mapper.Key) {
	at, has := d.devices[key]
	delete(d.devices, key)
	delete(d.waiting, key)
	l := d.lines[at]
	if !has || l == nil {
		return
	}
	l.change(key, nil)
	for _, other := range d.devices {
		if other == at {
			return
		}
	}
	l.end()
	delete(d.lines, at)
}
