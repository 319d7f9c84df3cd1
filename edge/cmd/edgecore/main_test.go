package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// patience is how long a test waits for what must happen; never how long it may take.
const patience = 2 * time.Minute

// configFile writes a config whose runtime and hub do not exist.
func configFile(t *testing.T) (file, dir string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "edgecore.yaml")
	text := fmt.Sprintf("nodeName: pi\nhub: [\"127.0.0.1:1\"]\ndataDir: %[1]s/data\nrunDir: %[1]s/run\npodLogsDir: %[1]s/logs\n"+
		"containerRuntimeEndpoint: unix://%[1]s/none.sock\n", dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, dir
}

func TestVersionAndHelp(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--version"}, &out); err != nil || !strings.HasPrefix(out.String(), "edgecore "+version) {
		t.Errorf("version %q, %v", out.String(), err)
	}
	out.Reset()
	if err := run(t.Context(), []string{"--help"}, &out); err == nil || !strings.Contains(out.String(), "-config") || !strings.Contains(out.String(), "-check") {
		t.Errorf("help %q, %v", out.String(), err)
	}
	if err := run(t.Context(), []string{"extra"}, &out); err == nil || !strings.Contains(err.Error(), `"extra"`) {
		t.Errorf("an extra argument: %v", err)
	}
}

func TestCheckSaysWhatItFound(t *testing.T) {
	file, dir := configFile(t)
	check := func() (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), []string{"--config", file, "--check"}, &out)
		return out.String(), err
	}
	if out, err := check(); err != nil || !strings.Contains(out, "sound, 0 objects") {
		t.Errorf("a new database: %q, %v", out, err)
	}
	database := filepath.Join(dir, "data", "store.db")
	if err := os.WriteFile(database, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err != nil || !strings.Contains(out, "store.db.corrupt-1") || !strings.Contains(out, "began empty") {
		t.Errorf("a damaged database: %q, %v", out, err)
	}
	unlock, err := lockDataDir(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if out, err := check(); err != nil || !strings.Contains(out, "in use") || !strings.Contains(out, fmt.Sprint(os.Getpid())) {
		t.Errorf("beside a running edgecore: %q, %v", out, err)
	}
	if err := run(t.Context(), []string{"--config", filepath.Join(dir, "none.yaml")}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("without a config: %v", err)
	}
}

func TestTwoEdgecoresNeverShareADataDirectory(t *testing.T) {
	file, dir := configFile(t)
	unlock, err := lockDataDir(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	err = run(t.Context(), []string{"--config", file}, &bytes.Buffer{})
	if !errors.Is(err, errInUse) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("a second edgecore: %v", err)
	}
	unlock()
	unlock, err = lockDataDir(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	unlock()
}

func TestEdgecoreWithoutRuntimeOrHubWaitsAndSaysSo(t *testing.T) {
	file, dir := configFile(t)
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"--config", file}, &bytes.Buffer{}) }()
	if err := systemd.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := systemd.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("systemd was told %q, %v", b[:n], err)
	}
	deadline := time.After(patience)
	var s localstatus.Status
	for s.Outbox == 0 || s.ReadyReason == "" || s.Line.LastError == "" { // the node's status waits for the hub
		select {
		case err := <-done:
			t.Fatalf("edgecore ended: %v", err)
		case <-deadline:
			t.Fatalf("status %+v", s)
		case <-time.After(5 * time.Millisecond):
		}
		s, err = localstatus.Get(ctx, filepath.Join(dir, "run"))
	}
	if err != nil || s.Node != "pi" || s.Ready || s.NodeReported || s.Line.Connected ||
		!strings.Contains(s.ReadyReason, "none.sock") || !strings.Contains(s.Line.LastError, "ca.crt") {
		t.Errorf("status %+v, %v", s, err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("told to stop: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("edgecore does not stop")
	}
	// The store was closed in order, and holds the report for the next start.
	if _, err := os.Stat(filepath.Join(dir, "data", "store.db-wal")); err == nil {
		t.Error("the database's log was left behind")
	}
	st, err := store.Open(filepath.Join(dir, "data", "store.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if pending, err := st.Pending(context.Background(), wire.ReportKind_REPORT_NODE, "pi"); err != nil || !pending {
		t.Errorf("the node's report: %v, %v", pending, err)
	}
}
