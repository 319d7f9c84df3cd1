package modbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"sync"
	"time"

	modbus "github.com/simonvetter/modbus"

	"github.com/holdfast-edge/holdfast/edge/mapper"
)

// line is one address: one connection, and a goroutine that makes one request at a
// time, as Modbus wants it. Writes go first, then what is due longest. A device that
// does not answer is asked less and less, so that the others behind a gateway have
// their turn.
type line struct {
	endpoint
	o   Options
	log *slog.Logger
	end context.CancelFunc

	mu      sync.Mutex
	changes map[mapper.Key]*config // nil: removed
	wake    chan struct{}          // capacity 1

	// Owned by run.
	devices map[mapper.Key]*device
	client  *modbus.ModbusClient // nil: not connected
	timeout time.Duration        // of a request: the longest that a device asks for
	fails   int                  // connections in a row that could not be made
	notYet  time.Time            // no connection before
}

// device is one device of a line.
type device struct {
	key   mapper.Key
	c     config
	polls []*poll
	state mapper.State
	fails int                // requests in a row without an answer
	pause time.Time          // no request before
	done  map[point]struct{} // desired values that need no write any more
	tries map[point]int      // writes that were refused
	later time.Time          // no write before
	wrong map[string]string  // what was told of a property
}

// mostWrites is how often a write that the device refuses is made.
const mostWrites = 3

// offlineAfter is how many requests without an answer make a device offline: one may
// be lost.
const offlineAfter = 2

func newLine(e endpoint, o Options) *line {
	return &line{
		endpoint: e, o: o, log: o.Log.With("address", e.address), changes: make(map[mapper.Key]*config),
		wake: make(chan struct{}, 1), devices: make(map[mapper.Key]*device),
	}
}

// change tells the line of a device; nil: it is removed.
func (l *line) change(key mapper.Key, c *config) {
	l.mu.Lock()
	l.changes[key] = c
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *line) run(ctx context.Context) {
	defer l.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.takeChanges()
		work, at := l.next(time.Now())
		if work != nil {
			work()
			continue
		}
		wait := time.Hour
		if !at.IsZero() {
			wait = time.Until(at)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-l.wake:
		case <-ctx.Done():
		}
	}
}

func (l *line) takeChanges() {
	l.mu.Lock()
	changes := l.changes
	l.changes = make(map[mapper.Key]*config)
	l.mu.Unlock()
	for key, c := range changes {
		was := l.devices[key]
		switch {
		case c == nil:
			delete(l.devices, key)
		case was == nil:
			l.devices[key] = &device{
				key: key, c: *c, polls: plan(c.points, c.gap),
				done: make(map[point]struct{}), tries: make(map[point]int), wrong: make(map[string]string),
			}
		case was.c.unit != c.unit || was.c.timeout != c.timeout || was.c.gap != c.gap || !slices.Equal(was.c.points, c.points):
			was.take(c)
		}
	}
	longest := time.Duration(0)
	for _, d := range l.devices {
		longest = max(longest, d.c.timeout)
	}
	if longest != l.timeout {
		l.close()
		l.timeout = longest
	}
}

// take follows a new configuration. What has been written is not written again.
func (d *device) take(c *config) {
	if d.c.unit != c.unit {
		d.fails, d.pause, d.done = 0, time.Time{}, make(map[point]struct{})
	}
	d.c = *c
	d.polls = plan(c.points, c.gap)
	d.later = time.Time{}
	d.tries = make(map[point]int)
	for p := range d.done {
		if !slices.Contains(c.points, p) {
			delete(d.done, p)
		}
	}
}

// next finds what to do now, or when there is something.
func (l *line) next(now time.Time) (work func(), at time.Time) {
	var best time.Time
	for _, d := range l.devices {
		blocked := d.pause
		if l.client == nil && l.notYet.After(blocked) {
			blocked = l.notYet
		}
		consider := func(due time.Time, job func()) {
			if due.Before(blocked) {
				due = blocked
			}
			switch {
			case due.After(now):
				if at.IsZero() || due.Before(at) {
					at = due
				}
			case work == nil || due.Before(best):
				work, best = job, due
			}
		}
		if i := d.toWrite(); i >= 0 {
			consider(d.later, func() { l.write(d, i) }) // due since long, and so before what is read
		}
		for _, p := range d.polls {
			consider(p.next, func() { l.read(d, p) })
		}
	}
	return work, at
}

// toWrite is a point whose desired value is to be written; -1: none.
func (d *device) toWrite() int {
	for i := range d.c.points {
		p := &d.c.points[i]
		if p.desired == "" || !p.writable {
			continue
		}
		if _, done := d.done[*p]; !done {
			return i
		}
	}
	return -1
}

// read makes the requests of one poll and reports what came.
func (l *line) read(d *device, p *poll) {
	now := time.Now()
	if p.next = p.next.Add(p.every); p.next.Before(now) {
		p.next = now.Add(p.every) // cycles that were missed are not made up for
	}
	var values []mapper.Value
	for i := 0; i < len(p.requests); i++ {
		r := p.requests[i]
		registers, err := l.ask(d, r)
		if err != nil && !refused(err) {
			break // the rest would fail as well
		}
		if err != nil && len(r.points) > 1 {
			// One of them is not there: from now on each is read alone.
			var alone []request
			for _, point := range r.points {
				alone = append(alone, single(d.c.points, point))
			}
			p.requests = slices.Replace(p.requests, i, i+1, alone...)
			i--
			continue
		}
		for _, point := range r.points {
			of := &d.c.points[point]
			if err != nil {
				l.complain(d, of.name, fmt.Errorf("read %s %d: %w", of.table, of.address, err))
				continue
			}
			from := int(of.address) - int(r.start)
			if v, ok := l.value(d, of, registers[from:from+int(of.count)]); ok {
				values = append(values, v)
			}
		}
	}
	l.o.Up.Values(d.key, values...)
}

// value makes what is reported of what was read. When the registers are as the
// desired value has them, it is reported in its own words, 21.50 and not 21.5.
func (l *line) value(d *device, p *point, registers []uint16) (mapper.Value, bool) {
	text, err := p.decode(registers)
	if err != nil {
		l.complain(d, p.name, fmt.Errorf("%s %d: %w", p.table, p.address, err))
		return mapper.Value{}, false
	}
	if p.desired != "" && p.writable {
		if want, err := p.encode(p.desired); err == nil && slices.Equal(p.only(registers), want) {
			text = p.desired
		}
	}
	if d.wrong[p.name] != "" {
		delete(d.wrong, p.name)
		l.log.Info("a property is well again", "device", d.key, "property", p.name)
	}
	return mapper.Value{Property: p.name, Text: text, At: time.Now()}, true
}

// only leaves of registers what a value says of them: for a bit, the bit.
func (p *point) only(registers []uint16) []uint16 {
	if p.bit < 0 || p.table.bits() {
		return registers
	}
	return []uint16{registers[0] & p.mask()}
}

// mask is a point's bit in its register as it travels.
func (p *point) mask() uint16 {
	m := uint16(1) << max(p.bit, 0)
	if p.littleB {
		m = m<<8 | m>>8
	}
	return m
}

// complain tells of a property once, until it is well or something else is wrong.
func (l *line) complain(d *device, property string, err error) {
	if d.wrong[property] != err.Error() {
		d.wrong[property] = err.Error()
		l.log.Error("a property cannot be served", "device", d.key, "property", property, "err", err)
	}
}

// write makes the device follow a desired value: it is read, written when it is
// another one, read again and reported. It is written once for each desired value,
// and once more when the device was away.
func (l *line) write(d *device, i int) {
	p := d.c.points[i]
	want, err := p.encode(p.desired)
	if err != nil {
		l.complain(d, p.name, fmt.Errorf("the desired value %q cannot be written to %s %d: %w", clip(p.desired), p.table, p.address, err))
		d.done[p] = struct{}{}
		return
	}
	r := single(d.c.points, i)
	has, err := l.ask(d, r)
	if err != nil && (!refused(err) || p.bit >= 0 && !p.table.bits()) {
		l.refuseWrite(d, p, err)
		return
	}
	if err != nil || !slices.Equal(p.only(has), want) {
		if p.bit >= 0 && !p.table.bits() {
			want = []uint16{has[0]&^p.mask() | want[0]}
		}
		if err := l.tell(d, p, want); err != nil {
			l.refuseWrite(d, p, err)
			return
		}
		l.log.Info("wrote a desired value", "device", d.key, "property", p.name, "value", clip(p.desired))
		has, err = l.ask(d, r)
	}
	d.done[p] = struct{}{}
	delete(d.tries, p)
	if err != nil {
		return // a register that can only be written
	}
	if v, ok := l.value(d, &p, has); ok {
		l.o.Up.Values(d.key, v)
	}
}

// refuseWrite gives a write up after some tries, when the device refuses it.
func (l *line) refuseWrite(d *device, p point, err error) {
	if !refused(err) {
		return // the device is away: as soon as it is back
	}
	d.tries[p]++
	l.complain(d, p.name, fmt.Errorf("write %q to %s %d: %w", clip(p.desired), p.table, p.address, err))
	if d.tries[p] >= mostWrites {
		d.done[p] = struct{}{}
		return
	}
	d.later = time.Now().Add(l.o.Pause << d.tries[p])
}

// ask makes one request to read. Bits come as registers that hold 0 or 1.
func (l *line) ask(d *device, r request) (registers []uint16, err error) {
	err = l.do(d, func(c *modbus.ModbusClient) error {
		var bits []bool
		var err error
		switch r.table {
		case coil:
			bits, err = c.ReadCoils(r.start, uint16(r.count))
		case discreteInput:
			bits, err = c.ReadDiscreteInputs(r.start, uint16(r.count))
		case inputRegister:
			registers, err = c.ReadRegisters(r.start, uint16(r.count), modbus.INPUT_REGISTER)
		default:
			registers, err = c.ReadRegisters(r.start, uint16(r.count), modbus.HOLDING_REGISTER)
		}
		for _, bit := range bits {
			register := uint16(0)
			if bit {
				register = 1
			}
			registers = append(registers, register)
		}
		if err == nil && len(registers) != r.count {
			err = fmt.Errorf("the answer has %d values, not %d", len(registers), r.count)
		}
		return err
	})
	return registers, err
}

// tell makes one request to write: function 5 or 6 for one, 15 or 16 for several.
func (l *line) tell(d *device, p point, registers []uint16) error {
	return l.do(d, func(c *modbus.ModbusClient) error {
		switch {
		case p.table == coil && p.multiple:
			return c.WriteCoils(p.address, []bool{registers[0] != 0})
		case p.table == coil:
			return c.WriteCoil(p.address, registers[0] != 0)
		case len(registers) == 1 && !p.multiple:
			return c.WriteRegister(p.address, registers[0])
		default:
			return c.WriteRegisters(p.address, registers)
		}
	})
}

// do makes a request on the line's connection and learns from its end. A connection
// that was there before may have died unnoticed: then it is made anew, once.
func (l *line) do(d *device, request func(*modbus.ModbusClient) error) error {
	for {
		fresh := l.client == nil
		if fresh {
			if err := l.connect(); err != nil {
				return err
			}
		}
		_ = l.client.SetUnitId(d.c.unit) // it never fails
		err := request(l.client)
		switch {
		case err == nil || refused(err):
			l.answered(d)
			return err
		case errors.Is(err, modbus.ErrGWPathUnavailable), errors.Is(err, modbus.ErrGWTargetFailedToRespond):
			l.unanswered(d, err) // the gateway lives
			return err
		}
		// An answer that comes late must not be taken for that of the next request.
		l.close()
		if !fresh && !errors.Is(err, modbus.ErrRequestTimedOut) {
			continue
		}
		l.unanswered(d, err)
		return err
	}
}

// refused says whether a device answered that it will not.
func refused(err error) bool {
	for _, exception := range []error{
		modbus.ErrIllegalFunction, modbus.ErrIllegalDataAddress, modbus.ErrIllegalDataValue, modbus.ErrServerDeviceFailure,
		modbus.ErrAcknowledge, modbus.ErrServerDeviceBusy, modbus.ErrMemoryParityError,
	} {
		if errors.Is(err, exception) {
			return true
		}
	}
	return false
}

func (l *line) connect() error {
	client, err := modbus.NewClient(&modbus.ClientConfiguration{URL: l.url(), Timeout: l.timeout, Logger: log.New(io.Discard, "", 0)})
	if err == nil {
		err = client.Open()
	}
	if err != nil {
		l.notYet = time.Now().Add(l.backoff(l.fails))
		l.fails++
		for _, d := range l.devices {
			l.unanswered(d, err)
		}
		return err
	}
	l.client, l.fails = client, 0
	return nil
}

func (l *line) close() {
	if l.client != nil {
		_ = l.client.Close() // whatever it says, it is gone
		l.client = nil
	}
}

func (l *line) backoff(fails int) time.Duration {
	return min(l.o.Pause<<min(fails, 10), l.o.Longest)
}

// answered notes that a device lives.
func (l *line) answered(d *device) {
	d.fails, d.pause = 0, time.Time{}
	if d.state == mapper.Online {
		return
	}
	d.state = mapper.Online
	l.log.Info("a device answers", "device", d.key, "unit", d.c.unit)
	l.o.Up.State(d.key, d.state)
}

// unanswered notes that a device did not answer.
func (l *line) unanswered(d *device, err error) {
	d.pause = time.Now().Add(l.backoff(d.fails))
	d.fails++
	if d.fails < offlineAfter || d.state == mapper.Offline {
		return
	}
	d.state = mapper.Offline
	d.done = make(map[point]struct{}) // it may come back without what it was told
	d.tries = make(map[point]int)
	l.log.Warn("a device does not answer; trying again", "device", d.key, "unit", d.c.unit, "err", err)
	l.o.Up.State(d.key, d.state)
}
