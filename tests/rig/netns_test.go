package rig_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/tests/rig"
)

func TestLineIsCutAndMended(t *testing.T) {
	ctx := testContext(t)
	node := newNetns(t, "node", rig.NetnsOptions{})
	hub := node.Bridge().Addr().String()
	ping(t, ctx, node, hub)

	if err := node.Cut(); err != nil {
		t.Fatal(err)
	}
	before, err := node.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := node.Command("busybox", "ping", "-c", "1", "-W", "1", hub).CombinedOutput(); err == nil {
		t.Errorf("ping went through a line that was cut: %s", out)
	}
	if after, err := node.Bytes(); err != nil || after != before {
		t.Errorf("%d bytes went through a line that was cut, error %v", after-before, err)
	}
	if err := node.Mend(); err != nil {
		t.Fatal(err)
	}
	ping(t, ctx, node, hub)
}

func TestBytesCountsBothWays(t *testing.T) {
	node := newNetns(t, "node", rig.NetnsOptions{})
	l, err := net.Listen("tcp", net.JoinHostPort(node.Bridge().Addr().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	echoed := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			c.Close()
		}
		echoed <- err
	}()
	before, err := node.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	c, err := node.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 100_000
	go func() {
		c.Write(make([]byte, size)) // what does not arrive is missed below
		c.(*net.TCPConn).CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, c); err != nil || n != size {
		t.Fatalf("%d bytes came back, error %v", n, err)
	}
	if err := <-echoed; err != nil {
		t.Fatal(err)
	}
	after, err := node.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if after-before < 2*size || after-before > 4*size {
		t.Errorf("%d bytes counted for %d each way", after-before, size)
	}
}

func TestNodeHasNoIPv6AndListensInside(t *testing.T) {
	node := newNetns(t, "node", rig.NetnsOptions{})
	out, err := node.Command("ip", "-6", "addr").CombinedOutput()
	if err != nil || len(out) != 0 {
		t.Errorf("error %v, IPv6 addresses: %s", err, out)
	}
	l, err := node.Listen("0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", net.JoinHostPort(node.Addr().String(), port))
	if err != nil {
		t.Fatalf("reach a listener inside from the bridge: %v", err)
	}
	c.Close()
}

func TestRangesAndAddressesAreNotGivenTwice(t *testing.T) {
	a := newNetns(t, "a", rig.NetnsOptions{})
	b := newNetns(t, "b", rig.NetnsOptions{Bridge: a.Bridge()})
	other := newNetns(t, "other", rig.NetnsOptions{})
	if a.Addr() == b.Addr() || a.Bridge().Prefix().Overlaps(other.Bridge().Prefix()) {
		t.Errorf("addresses %s and %s, ranges %s and %s", a.Addr(), b.Addr(), a.Bridge().Prefix(), other.Bridge().Prefix())
	}
	if _, err := rig.NewBridge(rig.BridgeOptions{Prefix: a.Bridge().Prefix()}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second bridge with the range of the first: error %v", err)
	}
	if _, err := rig.NewNetns("c", rig.NetnsOptions{Bridge: a.Bridge(), Addr: b.Addr()}); err == nil || !strings.Contains(err.Error(), b.Addr().String()) {
		t.Errorf("a third node with the address of the second: error %v", err)
	}
}
