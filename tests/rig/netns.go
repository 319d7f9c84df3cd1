package rig

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip(8) keeps named network namespaces.
const netnsDir = "/var/run/netns"

// firstNode is the host number of the first node on a bridge; the bridge itself is number 1.
const firstNode = 11

// BridgeOptions say which addresses a bridge has; the zero value takes a free /27 of the ranges which
// RFC 5737 keeps for documentation.
type BridgeOptions struct {
	Prefix netip.Prefix // e.g. 192.0.2.0/24; must not overlap an address of the current network namespace
}

// Bridge is the wire to which nodes' network namespaces are attached. Its own address, the first of its
// range, is the hub's side: a server in the current network namespace is reached there.
type Bridge struct {
	name   string
	prefix netip.Prefix
	claim  *claim
}

// NewBridge makes a bridge in the current network namespace.
func NewBridge(o BridgeOptions) (*Bridge, error) {
	b := &Bridge{}
	c, err := newClaim(func(id string, others []record) (record, error) {
		b.name = "hfb" + id
		var err error
		b.prefix, err = choosePrefix(o.Prefix, others)
		return record{Link: b.name, Prefix: b.prefix}, err
	})
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	b.claim = c
	if err := b.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge %s: %w", b.name, err), b.Close())
	}
	return b, nil
}

func (b *Bridge) setUp() error {
	// A bridge otherwise takes the lowest address of its ports, and changes it when a node joins or leaves:
	// the nodes' ARP caches would then point to nobody.
	mac := make([]byte, 6)
	rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	if err := run("ip", "link", "add", b.name, "address", net.HardwareAddr(mac).String(), "type", "bridge", "mcast_snooping", "0"); err != nil {
		return err
	}
	if err := disableIPv6(b.name); err != nil {
		return err
	}
	return runAll(
		[]string{"ip", "addr", "add", netip.PrefixFrom(b.Addr(), b.prefix.Bits()).String(), "dev", b.name},
		[]string{"ip", "link", "set", b.name, "up"},
		// In a fresh network namespace even one's own addresses are out of reach until loopback is up.
		[]string{"ip", "link", "set", "lo", "up"},
	)
}

// Name is the interface name.
func (b *Bridge) Name() string { return b.name }

// Addr is the hub's address on the bridge.
func (b *Bridge) Addr() netip.Addr { return b.prefix.Masked().Addr().Next() }

// Prefix is the range of the bridge's addresses.
func (b *Bridge) Prefix() netip.Prefix { return b.prefix.Masked() }

// Close removes the bridge.
func (b *Bridge) Close() error {
	if err := deleteLink(b.name); err != nil {
		return err
	}
	return b.claim.release()
}

// NetnsOptions say where a node's network namespace is attached.
type NetnsOptions struct {
	Bridge *Bridge    // nil: a bridge of its own, closed together with the namespace
	Addr   netip.Addr // zero: the bridge's next free one, from number 11 on
}

// Netns is the network of one node: a network namespace with an interface eth0 whose other end is a port
// of a bridge in the namespace in which it was made.
type Netns struct {
	name   string
	link   string // host end of eth0
	addr   netip.Addr
	bridge *Bridge
	owns   bool // the bridge was made for this namespace
	claim  *claim
}

// NewNetns makes a network namespace; name becomes the last part of the namespace's own name.
func NewNetns(name string, o NetnsOptions) (*Netns, error) {
	n := &Netns{bridge: o.Bridge}
	if n.bridge == nil {
		b, err := NewBridge(BridgeOptions{})
		if err != nil {
			return nil, fmt.Errorf("netns %s: %w", name, err)
		}
		n.bridge, n.owns = b, true
	}
	c, err := newClaim(func(id string, others []record) (record, error) {
		n.name, n.link = "hf-"+id+"-"+name, "hfv"+id
		var err error
		n.addr, err = chooseAddr(o.Addr, n.bridge, others)
		return record{Netns: n.name, Link: n.link, Prefix: netip.PrefixFrom(n.addr, n.addr.BitLen())}, err
	})
	if err != nil {
		err = fmt.Errorf("netns %s: %w", name, err)
		if n.owns {
			err = errors.Join(err, n.bridge.Close())
		}
		return nil, err
	}
	n.claim = c
	if err := n.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("netns %s: %w", n.name, err), n.Close())
	}
	return n, nil
}

func (n *Netns) setUp() error {
	if err := run("ip", "netns", "add", n.name); err != nil {
		return err
	}
	// IPv6 goes off before there is an interface, so that eth0 never solicits a router: the bytes counted on
	// the line are those of the protocol under test.
	if err := n.Do(func() error { return disableIPv6("all", "default") }); err != nil {
		return err
	}
	if err := run("ip", "link", "add", n.link, "type", "veth", "peer", "name", "eth0", "netns", n.name); err != nil {
		return err
	}
	if err := disableIPv6(n.link); err != nil {
		return err
	}
	if err := runAll(
		[]string{"ip", "link", "set", n.link, "master", n.bridge.name},
		[]string{"ip", "link", "set", n.link, "up"},
	); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", netip.PrefixFrom(n.addr, n.bridge.prefix.Bits()).String(), "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", n.bridge.Addr().String()},
	} {
		if err := finish(n.Command("ip", args...)); err != nil {
			return err
		}
	}
	return nil
}

// Name is the namespace's name as `ip netns` knows it.
func (n *Netns) Name() string { return n.name }

// Path is the file that stands for the namespace.
func (n *Netns) Path() string { return filepath.Join(netnsDir, n.name) }

// Addr is the node's address.
func (n *Netns) Addr() netip.Addr { return n.addr }

// Bridge is the bridge to which the node is attached; Bridge().Addr() is the hub's address.
func (n *Netns) Bridge() *Bridge { return n.bridge }

// Cut takes the line away: packets vanish, open connections stay open and silent.
func (n *Netns) Cut() error { return run("ip", "link", "set", n.link, "down") }

// Mend gives the line back.
func (n *Netns) Mend() error { return run("ip", "link", "set", n.link, "up") }

// Shape lets megabits a second through, each way, with a queue of 20 ms as a good router has; 0: as many as
// the machine can.
func (n *Netns) Shape(megabits int) error {
	ends := [][]string{{"tc", "qdisc"}, {"nsenter", "--net=" + n.Path(), "--", "tc", "qdisc"}}
	for i, device := range []string{n.link, "eth0"} {
		change := append(ends[i], "del", "dev", device, "root")
		if megabits > 0 {
			change = append(ends[i], "replace", "dev", device, "root", "tbf", "rate", fmt.Sprintf("%dmbit", megabits), "burst", "64kb", "latency", "20ms")
		}
		if err := run(change[0], change[1:]...); err != nil {
			return fmt.Errorf("shape the line of %s: %w", n.name, err)
		}
	}
	return nil
}

// Command prepares a command that runs inside the namespace. The process is the command itself, not a
// wrapper: killing it kills the command.
func (n *Netns) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.Path(), "--", name}, args...)...)
}

// Do calls fn on a thread that is inside the namespace. Sockets that fn opens belong to the namespace for
// as long as they live; goroutines that fn starts do not.
func (n *Netns) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread together with the goroutine, and no other goroutine
		// ever runs in the wrong namespace.
		runtime.LockOSThread()
		done <- func() error {
			f, err := os.Open(n.Path())
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter netns %s: %w", n.name, err)
			}
			return fn()
		}()
	}()
	return <-done
}

// Listen opens a TCP listener inside the namespace.
func (n *Netns) Listen(address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// Dial connects over TCP from inside the namespace; address must be numeric, as names are resolved by
// goroutines of their own.
func (n *Netns) Dial(address string) (c net.Conn, err error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		return err
	})
	return c, err
}

// Bytes counts what went over the line since the namespace was made, both ways, link headers included.
// It reads /proc and not /sys: a process inside `unshare --net` still sees the machine's first network
// namespace in /sys.
func (n *Netns) Bytes() (uint64, error) {
	b, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || strings.TrimSpace(name) != n.link || len(fields) < 9 {
			continue
		}
		rx, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("interface %s: %w", n.link, err)
		}
		tx, err := strconv.ParseUint(fields[8], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("interface %s: %w", n.link, err)
		}
		return rx + tx, nil
	}
	return 0, fmt.Errorf("interface %s of netns %s is not in this network namespace", n.link, n.name)
}

// Close removes the namespace. Processes that still run inside keep it alive without a line.
func (n *Netns) Close() error {
	errs := []error{deleteLink(n.link), deleteNetns(n.name)}
	if errors.Join(errs...) == nil {
		errs = append(errs, n.claim.release())
	}
	if n.owns {
		errs = append(errs, n.bridge.Close())
	}
	return errors.Join(errs...)
}

// choosePrefix takes the wanted range, or the first free /27 of the documentation ranges.
func choosePrefix(want netip.Prefix, others []record) (netip.Prefix, error) {
	taken, err := localPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, r := range others {
		if r.Prefix.IsValid() {
			taken = append(taken, r.Prefix)
		}
	}
	free := func(p netip.Prefix) bool {
		for _, t := range taken {
			if t.Overlaps(p) {
				return false
			}
		}
		return true
	}
	if want.IsValid() {
		if !free(want) {
			return netip.Prefix{}, fmt.Errorf("address range %s is in use on this machine; choose another", want)
		}
		return want, nil
	}
	for _, base := range []string{"192.0.2.0", "198.51.100.0", "203.0.113.0"} {
		a := netip.MustParseAddr(base).As4()
		for block := 0; block < 256; block += 32 {
			a[3] = byte(block)
			if p := netip.PrefixFrom(netip.AddrFrom4(a), 27); free(p) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, errors.New("all documentation address ranges are in use on this machine; stop another instance")
}

// chooseAddr takes the wanted address, or the first one on the bridge that no other instance has.
func chooseAddr(want netip.Addr, b *Bridge, others []record) (netip.Addr, error) {
	taken := map[netip.Addr]bool{b.Addr(): true}
	for _, r := range others {
		if r.Prefix.IsSingleIP() {
			taken[r.Prefix.Addr()] = true
		}
	}
	if want.IsValid() {
		if taken[want] || !b.prefix.Contains(want) {
			return netip.Addr{}, fmt.Errorf("address %s is taken or not in %s", want, b.prefix)
		}
		return want, nil
	}
	a := b.prefix.Masked().Addr()
	for range firstNode {
		a = a.Next()
	}
	for ; b.prefix.Contains(a) && b.prefix.Contains(a.Next()); a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address left in %s of bridge %s", b.prefix, b.name)
}

func localPrefixes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

// disableIPv6 turns IPv6 off for interfaces of the calling thread's network namespace.
func disableIPv6(ifaces ...string) error {
	for _, i := range ifaces {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+i+"/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("turn IPv6 off: %w", err)
		}
	}
	return nil
}

// deleteLink removes an interface that may be gone already, or be going: it goes with its peer, and with
// the network namespace that holds it, whenever the kernel gets round to it.
func deleteLink(name string) error {
	err := run("ip", "link", "del", name)
	if _, missing := net.InterfaceByName(name); missing != nil {
		return nil
	}
	return err
}

func deleteNetns(name string) error {
	if _, err := os.Stat(filepath.Join(netnsDir, name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return run("ip", "netns", "del", name)
}

func run(name string, args ...string) error { return finish(exec.Command(name, args...)) }

func runAll(commands ...[]string) error {
	for _, c := range commands {
		if err := run(c[0], c[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// finish runs a prepared command and puts what it printed into the error.
func finish(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
