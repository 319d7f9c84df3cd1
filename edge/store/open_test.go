package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/common/wire"
)

func TestOldDatabasesAreBroughtUpToDate(t *testing.T) {
	ctx := context.Background()
	old, err := filepath.Glob("testdata/version-*.db")
	if err != nil || len(old) != schemaVersion()-1 {
		t.Fatalf("testdata must hold a database of every version before %d, and holds %q", schemaVersion(), old)
	}
	for i, file := range old {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			must(t, err)
			path := filepath.Join(t.TempDir(), "store.db")
			must(t, os.WriteFile(path, b, 0o600))
			s := openAt(t, path, Options{})
			if o := s.Opened(); o.SchemaBefore != i+1 || o.Created || o.Recovery != nil {
				t.Errorf("opened %+v", o)
			}
			if version, _, err := headerVersion(path); err != nil || int(version) != schemaVersion() {
				t.Errorf("the file says version %d, %v", version, err)
			}
			if s.ID() != "0123456789abcdef0123456789abcdef" || !s.SyncedOnce() {
				t.Errorf("id %s, synced once %v", s.ID(), s.SyncedOnce())
			}
			if p, err := s.Pod(ctx, "u1"); err != nil || p.Spec.Containers[0].Image != "till:1" {
				t.Errorf("pod %v, %v", p, err)
			}
			if c, err := s.ConfigMap(ctx, "shop", "settings"); err != nil || c.Data["key"] != "a" {
				t.Errorf("configmap %v, %v", c, err)
			}
			if b, err := s.PodState(ctx, "u1"); err != nil || string(b) != "state" {
				t.Errorf("pod state %q, %v", b, err)
			}
			if tokens, err := s.Tokens(ctx, "u1"); err != nil || len(tokens) != 1 || tokens[0].Token != "t1" {
				t.Errorf("tokens %v, %v", tokens, err)
			}
			out, err := s.Outbox(ctx, 0, 10)
			if err != nil || len(out) != 2 || string(out[0].Payload) != "status" || string(out[1].Payload) != "event" {
				t.Fatalf("outbox %v, %v", out, err)
			}
			must(t, s.PutReport(ctx, Report{Kind: wire.ReportKind_REPORT_POD_STATUS, Key: "u1", Payload: []byte("newer")}))
			after, err := s.Outbox(ctx, 0, 10)
			if err != nil || len(after) != 2 || after[1].Id <= out[1].Id {
				t.Errorf("ids are used twice: %v after %v, %v", after, out, err)
			}
		})
	}
}

func TestNewerDatabaseIsRefusedAndLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{})
	must(t, s.db.Exec("PRAGMA user_version = 999").Error)
	must(t, s.Copy(context.Background()))
	must(t, s.Close())
	before, err := os.ReadFile(path)
	must(t, err)
	for range 2 {
		_, err = Open(path, Options{})
		if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "999") {
			t.Fatalf("error %v", err)
		}
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was touched: %v", err)
	}
	if entries := names(t, path); !equalNames(entries, "store.db", "store.db.good") {
		t.Errorf("beside it lie %q", entries)
	}
}

func TestOnlyTheOwnerMayReadTheFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "store.db")
	s := openAt(t, path, Options{})
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
	must(t, s.Copy(context.Background()))
	s.keepReserve()
	entries := names(t, path)
	if !equalNames(entries, "store.db", "store.db-shm", "store.db-wal", "store.db.good", "store.db.reserve") {
		t.Errorf("files %q", entries)
	}
	for _, name := range entries {
		info, err := os.Stat(filepath.Join(filepath.Dir(path), name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	must(t, s.Close())
	must(t, os.Chmod(path, 0o644)) // as an administrator's copy may leave it
	openAt(t, path, Options{})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("reopened: %v, %v", info.Mode(), err)
	}
}

func TestPathsAreTakenAsTheyAre(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%41&mode=memory", "store.db")
	s := openAt(t, path, Options{})
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
	must(t, s.Copy(context.Background()))
	must(t, s.Close())
	if entries := names(t, path); !equalNames(entries, "store.db", "store.db.good") {
		t.Errorf("files %q", entries)
	}
}

// damage is a way in which a database goes bad.
type damage struct {
	name string
	do   func(t *testing.T, path string)
}

func damages() []damage {
	rewrite := func(fn func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, fn(b), 0o600))
		}
	}
	return []damage{
		{"empty", rewrite(func([]byte) []byte { return nil })},
		{"missing", func(t *testing.T, path string) { must(t, os.Remove(path)) }},
		{"no database", rewrite(func([]byte) []byte { return []byte("this was a database once, and is not any more\n") })},
		{"cut in the middle", rewrite(func(b []byte) []byte { return b[:len(b)/2] })},
		{"cut to a few bytes", rewrite(func(b []byte) []byte { return b[:20] })},
		{"header gone", rewrite(func(b []byte) []byte { return append(make([]byte, 100), b[100:]...) })},
		{"zeroes behind the header", rewrite(func(b []byte) []byte { return append(b[:4096:4096], make([]byte, len(b)-4096)...) })},
		{"noise behind the header", rewrite(func(b []byte) []byte {
			for i := 4096; i < len(b); i++ {
				b[i] ^= byte(i*7 + 13)
			}
			return b
		})},
	}
}

func TestDamagedDatabaseIsSetAsideAndTheGoodCopyRestored(t *testing.T) {
	ctx := context.Background()
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			s := openAt(t, path, Options{})
			apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "copied")})
			must(t, s.MarkSynced(ctx))
			id := s.ID()
			must(t, s.Copy(ctx))
			apply(t, s, []*wire.Object{podObject(t, "a", "q", "u2", "after the copy")})
			must(t, s.Close())
			d.do(t, path)
			bad, _ := os.ReadFile(path)

			s = openAt(t, path, Options{})
			r := s.Opened().Recovery
			if s.Lineage() != 1 {
				t.Errorf("lineage %d: numbers of before the copy seem to compare with those of after", s.Lineage())
			}
			if r == nil || !r.Restored || r.Reason == "" || r.CopyTime.IsZero() || s.Opened().Created {
				t.Fatalf("opened %+v, recovery %+v", s.Opened(), r)
			}
			pods, err := s.Pods(ctx)
			if err != nil || len(pods) != 1 || pods[0].Spec.Containers[0].Image != "copied" || s.ID() != id {
				t.Errorf("pods %v, %v, id %s", pods, err, s.ID())
			}
			if s.SyncedOnce() {
				t.Error("a restored copy counts as synced")
			}
			if d.name == "missing" {
				if r.SetAside != "" {
					t.Errorf("set aside %s", r.SetAside)
				}
			} else if kept, err := os.ReadFile(r.SetAside); err != nil || !bytes.Equal(kept, bad) {
				t.Errorf("what was set aside as %q: %v", r.SetAside, err)
			}
			apply(t, s, []*wire.Object{podObject(t, "a", "r", "u3", "new")})
			must(t, s.Close())
			if s = openAt(t, path, Options{}); s.Opened().Recovery != nil || s.SyncedOnce() {
				t.Errorf("opened again: %+v, synced once %v", s.Opened(), s.SyncedOnce())
			}
		})
	}
}

func TestDamagedDatabaseWithoutACopyBeginsEmpty(t *testing.T) {
	ctx := context.Background()
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			s := openAt(t, path, Options{})
			apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
			must(t, s.MarkSynced(ctx))
			must(t, s.Close())
			d.do(t, path)

			s = openAt(t, path, Options{})
			if pods, err := s.Pods(ctx); err != nil || len(pods) != 0 || s.SyncedOnce() || !s.Opened().Created {
				t.Errorf("pods %v, %v; synced once %v; opened %+v", pods, err, s.SyncedOnce(), s.Opened())
			}
			// An empty or missing file is a first start, not a loss.
			r := s.Opened().Recovery
			if first := d.name == "empty" || d.name == "missing"; first != (r == nil) || r != nil && r.Restored {
				t.Errorf("recovery %+v", r)
			}
			apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
		})
	}
}

func TestDamagedCopyIsNoUse(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{})
	must(t, s.Copy(ctx))
	must(t, s.Close())
	must(t, os.WriteFile(path, []byte("no database"), 0o600))
	must(t, os.WriteFile(path+".good", []byte("no database either"), 0o600))
	s = openAt(t, path, Options{})
	r := s.Opened().Recovery
	if r == nil || r.Restored || !s.Opened().Created {
		t.Fatalf("opened %+v, recovery %+v", s.Opened(), r)
	}
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
	must(t, s.Close())
	for name, want := range map[string]string{"store.db.corrupt-1": "no database", "store.db.corrupt-2": "no database either"} {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(path), name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
}

func TestDamageFoundInUseIsTold(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{})
	must(t, s.Copy(ctx))
	var objects []*wire.Object
	for i := range 100 { // more than the page cache holds
		objects = append(objects, podObject(t, "a", fmt.Sprint("p", i), fmt.Sprint("u", i), strings.Repeat("x", 10000)))
	}
	apply(t, s, objects)
	must(t, s.db.Exec("PRAGMA wal_checkpoint(TRUNCATE)").Error)
	select {
	case <-s.Damaged():
		t.Fatal("a sound database is said to be damaged")
	default:
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, 900<<10), 8192)
	must(t, errors.Join(err, f.Close()))
	if _, err := s.Inventory(ctx); err == nil {
		_, err = s.Pods(ctx)
		if err == nil {
			t.Fatal("noise was read as pods")
		}
	}
	select {
	case <-s.Damaged():
	default:
		t.Error("the damage was found and not told")
	}
	must(t, s.Close())
	if s = openAt(t, path, Options{}); s.Opened().Recovery == nil || !s.Opened().Recovery.Restored {
		t.Errorf("opened %+v", s.Opened())
	}
}

func TestCopyIsMadeOfChangesByItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{CopyAfter: 1, CopyEvery: 1}) // nanoseconds
	apply(t, s, []*wire.Object{podObject(t, "a", "p", "u1", "i")})
	copied := func() bool {
		db, err := connectReadOnly(path + ".good")
		if err != nil {
			return false
		}
		defer disconnect(db)
		var n int64
		return db.Model(&objectRow{}).Count(&n).Error == nil && n == 1
	}
	eventually(t, "the change is in the good copy", copied)
}

func names(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func equalNames(got []string, want ...string) bool {
	return strings.Join(got, "\n") == strings.Join(want, "\n")
}
