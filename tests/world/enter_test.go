package world

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestAWorldHasItsOwnNetworkProcessesAndFolder(t *testing.T) {
	ifaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(ifaces) != 1 || ifaces[0].Flags&net.FlagUp == 0 {
		t.Errorf("interfaces %v: want loopback alone, up", ifaces)
	}
	if os.Getppid() != 1 {
		t.Errorf("the parent is process %d, want the world's init", os.Getppid())
	}
	if !strings.HasPrefix(os.TempDir(), "/") || !strings.Contains(os.TempDir(), "hfw") {
		t.Errorf("the folder for temporary files is %s, want the world's own", os.TempDir())
	}
	// Left behind on purpose: the world's end must not wait for it.
	if err := exec.Command("setsid", "sleep", "1000").Start(); err != nil {
		t.Fatal(err)
	}
}
