package modbus

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/edge/mapper"
)

// server is pymodbus in a process of its own; see testdata/server.py.
type server struct {
	t       *testing.T
	framing string
	port    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	set     chan struct{}

	mu   sync.Mutex
	seen []string // UNIT FUNCTION ADDRESS COUNT
}

func newServer(t *testing.T, framing string) *server {
	t.Helper()
	s := &server{t: t, framing: framing, set: make(chan struct{}, 16)}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// start takes the port that it had before.
func (s *server) start() {
	s.t.Helper()
	args := []string{"testdata/server.py", s.framing}
	if s.port != "" {
		args = append(args, s.port)
	}
	s.cmd = exec.Command("/usr/bin/python3", args...) // Debian's, which has python3-pymodbus
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var said strings.Builder
	s.cmd.Stderr = &said
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "listening ") {
		_ = s.cmd.Wait()
		s.t.Fatalf("the Modbus server did not start: %s", said.String())
	}
	s.port = strings.TrimPrefix(lines.Text(), "listening ")
	go func() {
		for lines.Scan() {
			if lines.Text() == "set" {
				s.set <- struct{}{}
				continue
			}
			s.mu.Lock()
			s.seen = append(s.seen, lines.Text())
			s.mu.Unlock()
		}
	}()
}

func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// put sets values: "UNIT TABLE ADDRESS VALUE..."
func (s *server) put(line string) {
	s.t.Helper()
	fmt.Fprintln(s.in, line)
	select {
	case <-s.set:
	case <-time.After(10 * time.Second):
		s.t.Fatalf("the server did not set %s", line)
	}
}

func (s *server) saw(line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.seen, line)
}

func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = nil
}

// up keeps what was reported.
type up struct {
	mu     sync.Mutex
	values map[string]string // DEVICE/PROPERTY
	counts map[string]int
	states map[string][]mapper.State
}

func (u *up) Values(key mapper.Key, values ...mapper.Value) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, v := range values {
		u.values[key.Name+"/"+v.Property] = v.Text
		u.counts[key.Name+"/"+v.Property]++
	}
}

func (u *up) State(key mapper.Key, s mapper.State) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.states[key.Name] = append(u.states[key.Name], s)
}

func (u *up) is(property, text string) func() bool {
	return func() bool { u.mu.Lock(); defer u.mu.Unlock(); return u.values[property] == text }
}

func (u *up) reached(device string, s mapper.State) func() bool {
	return func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		n := len(u.states[device])
		return n > 0 && u.states[device][n-1] == s
	}
}

func (u *up) count(property string) int { u.mu.Lock(); defer u.mu.Unlock(); return u.counts[property] }

func newDriver(t *testing.T) (*Driver, *up) {
	t.Helper()
	u := &up{values: map[string]string{}, counts: map[string]int{}, states: map[string][]mapper.State{}}
	d := New(Options{Up: u, Pause: 50 * time.Millisecond, Longest: 200 * time.Millisecond, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = d.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return d, u
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// describe makes a device: lines of NAME TYPE DESIRED VISITOR, "-" for no desired value.
func describe(t *testing.T, name, config string, lines ...string) mapper.Device {
	t.Helper()
	d := mapper.Device{Key: mapper.Key{Namespace: "plant", Name: name}, Config: object(t, config)}
	for _, line := range lines {
		f := strings.SplitN(line, " ", 4)
		p := mapper.Property{Name: f[0], Type: mapper.Type(f[1]), Writable: true, Collect: 50 * time.Millisecond, Config: object(t, f[3])}
		if f[2] != "-" {
			p.Desired = f[2]
		}
		d.Properties = append(d.Properties, p)
	}
	return d
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func both(t *testing.T, run func(t *testing.T, s *server, config string)) {
	for framing, transport := range map[string]string{"tcp": "tcp", "rtu": "rtuovertcp"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, framing)
			run(t, s, fmt.Sprintf(`{"address":"127.0.0.1:%s","transport":%q,"timeout":500}`, s.port, transport))
		})
	}
}

func set(t *testing.T, d *Driver, device mapper.Device) {
	t.Helper()
	if err := d.Set(device); err != nil {
		t.Fatal(err)
	}
}

// TestFunctionCodes 1 to 6, 15 and 16, by both framings.
func TestFunctionCodes(t *testing.T) {
	both(t, func(t *testing.T, s *server, config string) {
		d, u := newDriver(t)
		set(t, d, describe(t, "a", config,
			`c1 BOOLEAN - {"register":"coil","offset":3}`,
			`c2 BOOLEAN - {"register":"coil","offset":4}`,
			`in BOOLEAN - {"register":"discreteInput","offset":9}`,
			`i1 INT - {"register":"inputRegister","offset":5}`,
			`i2 FLOAT - {"register":"inputRegister","offset":6,"scale":0.1}`,
			`h INT - {"register":"holdingRegister","offset":0}`,
			`c5 BOOLEAN true {"register":"coil","offset":50}`,
			`c15 BOOLEAN true {"register":"coil","offset":52,"writeMultiple":true}`,
			`h6 INT 77 {"register":"holdingRegister","offset":60}`,
			`h16 FLOAT 21.50 {"register":"holdingRegister","offset":62,"dataType":"float32","wordOrder":"little"}`,
			`h16one INT -5 {"register":"holdingRegister","offset":66,"dataType":"int16","writeMultiple":true}`,
			`bit BOOLEAN true {"register":"holdingRegister","offset":70,"bit":9}`,
			`name STRING Pump {"register":"holdingRegister","offset":80,"limit":5}`,
		))
		for property, want := range map[string]string{
			"c1": "true", "c2": "false", "in": "true", "i1": "1005", "i2": "100.6", "h": "0", "c5": "true", "c15": "true",
			"h6": "77", "h16": "21.50", "h16one": "-5", "bit": "true", "name": "Pump",
		} {
			await(t, property+" is "+want, u.is("a/"+property, want))
		}
		for _, access := range []string{"1 1 3 2", "1 2 9 1", "1 4 5 2", "1 3 0 1", "1 5 50 1", "1 15 52 1", "1 6 60 1", "1 16 62 2", "1 16 66 1", "1 6 70 1", "1 16 80 5"} {
			await(t, "access "+access, func() bool { return s.saw(access) })
		}
		if !u.reached("a", mapper.Online)() {
			t.Error("the device is not online")
		}
		// The other bits of the register stay.
		s.put("1 h 70 1")
		set(t, d, describe(t, "a", config, `bit BOOLEAN false {"register":"holdingRegister","offset":70,"bit":9}`, `all INT - {"register":"holdingRegister","offset":70}`))
		await(t, "bit 0", u.is("a/all", "1"))
		set(t, d, describe(t, "a", config, `bit BOOLEAN true {"register":"holdingRegister","offset":70,"bit":9}`, `all INT - {"register":"holdingRegister","offset":70}`))
		await(t, "bits 0 and 9", u.is("a/all", "513"))
	})
}

func TestADesiredValueIsWrittenOnce(t *testing.T) {
	both(t, func(t *testing.T, s *server, config string) {
		d, u := newDriver(t)
		visitor := `{"register":"holdingRegister","offset":10}`
		set(t, d, describe(t, "a", config, `h INT 5 `+visitor))
		await(t, "5", u.is("a/h", "5"))
		// Somebody turns the knob at the device: that is reported, and not undone.
		s.put("1 h 10 8")
		await(t, "8", u.is("a/h", "8"))
		set(t, d, describe(t, "a", config, `h INT 6 `+visitor))
		await(t, "6", u.is("a/h", "6"))
		set(t, d, describe(t, "a", config, `h INT 5 `+visitor))
		await(t, "5 again", u.is("a/h", "5"))
		// What cannot be is refused before the device is asked.
		s.forget()
		set(t, d, describe(t, "a", config, `h INT 70000 `+visitor))
		n := u.count("a/h")
		await(t, "more readings", func() bool { return u.count("a/h") > n+3 })
		if s.saw("1 6 10 1") || !u.is("a/h", "5")() {
			t.Error("a value that does not fit was written")
		}
	})
}

// TestADeviceComesBack: after a restart of the server the values come again, and
// what the device has forgotten is written anew.
func TestADeviceComesBack(t *testing.T) {
	both(t, func(t *testing.T, s *server, config string) {
		d, u := newDriver(t)
		set(t, d, describe(t, "a", config, `h INT 5 {"register":"holdingRegister","offset":10}`, `i INT - {"register":"input","offset":1}`))
		await(t, "5", u.is("a/h", "5"))
		s.stop()
		await(t, "offline", u.reached("a", mapper.Offline))
		n := u.count("a/i")
		s.forget()
		s.start() // all holding registers are 0
		await(t, "online", u.reached("a", mapper.Online))
		await(t, "the write", func() bool { return s.saw("1 6 10 1") })
		await(t, "5 again", u.is("a/h", "5"))
		await(t, "readings", func() bool { return u.count("a/i") > n })
		u.mu.Lock()
		defer u.mu.Unlock()
		if want := []mapper.State{"online", "offline", "online"}; !slices.Equal(u.states["a"], want) {
			t.Errorf("states %v, want %v", u.states["a"], want)
		}
	})
}

// TestAnIllegalAddressSpoilsNoNeighbour: 200 is the first that there is not.
func TestAnIllegalAddressSpoilsNoNeighbour(t *testing.T) {
	both(t, func(t *testing.T, s *server, config string) {
		d, u := newDriver(t)
		set(t, d, describe(t, "a", config,
			`good INT - {"register":"input","offset":199}`, `bad INT - {"register":"input","offset":200}`,
			`set INT 1 {"register":"holding","offset":300}`, `other INT 4 {"register":"holding","offset":20}`))
		await(t, "the good one", u.is("a/good", "1199"))
		await(t, "the other desired value", u.is("a/other", "4"))
		if u.count("a/bad") != 0 || u.count("a/set") != 0 || !u.reached("a", mapper.Online)() {
			t.Error("a value that was not read was reported, or the device is not online")
		}
	})
}

// TestOneConnectionForTheUnitsOfAGateway: two answer, one is dead and delays them
// by its pauses alone.
func TestOneConnectionForTheUnitsOfAGateway(t *testing.T) {
	both(t, func(t *testing.T, s *server, config string) {
		d, u := newDriver(t)
		for name, unit := range map[string]int{"one": 1, "two": 2, "dead": 9} {
			set(t, d, describe(t, name, strings.Replace(config, "500", fmt.Sprintf(`100,"unit":%d`, unit), 1), `h INT - {"register":"holding","offset":10}`))
		}
		s.put("2 h 10 22")
		await(t, "unit 2", u.is("two/h", "22"))
		await(t, "unit 1", u.is("one/h", "0"))
		await(t, "the dead one", u.reached("dead", mapper.Offline))
		n := u.count("one/h")
		await(t, "more of unit 1", func() bool { return u.count("one/h") > n+5 })
		d.mu.Lock()
		lines := len(d.lines)
		d.mu.Unlock()
		if lines != 1 {
			t.Errorf("%d lines to one address", lines)
		}
		d.Remove(mapper.Key{Namespace: "plant", Name: "dead"})
		d.Remove(mapper.Key{Namespace: "plant", Name: "one"})
		n = u.count("two/h")
		await(t, "more of unit 2", func() bool { return u.count("two/h") > n+2 })
		d.Remove(mapper.Key{Namespace: "plant", Name: "two"})
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.lines) != 0 || len(d.devices) != 0 {
			t.Errorf("%d lines, %d devices are left", len(d.lines), len(d.devices))
		}
	})
}

// TestADeadAddressDelaysNoOther: it takes connections and never answers.
func TestADeadAddressDelaysNoOther(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	s := newServer(t, "tcp")
	d, u := newDriver(t)
	set(t, d, describe(t, "dead", fmt.Sprintf(`{"address":%q,"timeout":5000}`, silent.Addr()), `h INT - {"register":"holding","offset":1}`))
	begun := time.Now()
	set(t, d, describe(t, "well", fmt.Sprintf(`{"address":"127.0.0.1:%s"}`, s.port), `h INT - {"register":"holding","offset":1}`))
	await(t, "readings", func() bool { return u.count("well/h") > 10 })
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("ten readings took %s", took)
	}
}

// TestADeviceMovesToAnotherAddress, and back.
func TestADeviceMovesToAnotherAddress(t *testing.T) {
	s1, s2 := newServer(t, "tcp"), newServer(t, "tcp")
	s2.put("1 h 1 2")
	d, u := newDriver(t)
	for _, c := range []struct{ port, value string }{{s1.port, "0"}, {s2.port, "2"}, {s1.port, "0"}} {
		set(t, d, describe(t, "a", fmt.Sprintf(`{"address":"127.0.0.1:%s"}`, c.port), `h INT - {"register":"holding","offset":1}`))
		await(t, "the value there", u.is("a/h", c.value))
	}
	if err := d.Set(describe(t, "a", `{}`)); err == nil {
		t.Error("a device without an address is served")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.lines) != 0 {
		t.Errorf("%d lines are left", len(d.lines))
	}
}
