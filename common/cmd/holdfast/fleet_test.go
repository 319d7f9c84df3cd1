package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFleetTellsTheAddressOfThePage, and what to do where there is none.
func TestFleetTellsTheAddressOfThePage(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cloudcore.yaml")
	fleet := func(config string, more ...string) (out, errs string, code int) {
		t.Helper()
		if err := os.WriteFile(file, []byte(fmt.Sprintf("dataDir: %s\n%s", dir, config)), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		code = run(t.Context(), append([]string{"fleet", "--config", file}, more...), strings.NewReader(""), &stdout, &stderr)
		return stdout.String(), stderr.String(), code
	}
	if _, errs, code := fleet(""); code != 1 || !strings.Contains(errs, "cloudcore makes it as it starts") {
		t.Errorf("without a token: %d, %s", code, errs)
	}
	if err := os.WriteFile(filepath.Join(dir, "fleet-token"), []byte("T0KEN\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for config, want := range map[string]string{
		"":                           "http://127.0.0.1:10353/#token=T0KEN",
		"fleetListen: \"[::1]:9\"\n": "http://[::1]:9/#token=T0KEN",
		"fleetListen: 0.0.0.0:9\nadvertiseAddresses: [hub.example.test]\n": "https://hub.example.test:9/#token=T0KEN",
		"fleetListen: 192.0.2.7:9\n":                                       "https://192.0.2.7:9/#token=T0KEN",
	} {
		if out, errs, code := fleet(config, "-q"); code != 0 || out != want+"\n" {
			t.Errorf("%q: %d, %q, %s; want %s", config, code, out, errs, want)
		}
		if out, _, _ := fleet(config); !strings.Contains(out, "    "+want+"\n") || !strings.Contains(out, "make it void") {
			t.Errorf("%q: %s", config, out)
		}
	}
	if out, _, _ := fleet("advertiseAddresses: [hub.example.test]\n"); !strings.Contains(out, "ssh -N -L 10353:127.0.0.1:10353 hub.example.test") {
		t.Errorf("for other machines: %s", out)
	}
	if _, errs, code := fleet("fleetListen: \"\"\n"); code != 1 || !strings.Contains(errs, "set fleetListen in "+file) {
		t.Errorf("where it is off: %d, %s", code, errs)
	}
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"fleet", "--config", filepath.Join(dir, "none.yaml")}, strings.NewReader(""), &bytes.Buffer{}, &stderr); code != 1 || !strings.Contains(stderr.String(), "run this on a hub's machine") {
		t.Errorf("elsewhere: %d, %s", code, stderr.String())
	}
}
