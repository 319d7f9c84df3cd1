package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// crashEnv makes this test binary a writer that waits to be killed.
const crashEnv = "HOLDFAST_STORE_CRASH_TEST"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		if err := writeForEver(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// pair is two ConfigMaps that always change in one transaction.
func pair(n int) ([]*wire.Object, error) {
	var out []*wire.Object
	for _, name := range []string{"left", "right"} {
		b, err := (&corev1.ConfigMap{Data: map[string]string{"key": strconv.Itoa(n)}}).Marshal()
		if err != nil {
			return nil, err
		}
		out = append(out, &wire.Object{Ref: &wire.ObjectRef{Kind: wire.Kind_KIND_CONFIG_MAP, Namespace: "a", Name: name, Uid: name, Version: wire.Version(b)}, Payload: b})
	}
	return out, nil
}

// writeForEver says what it has committed after the commit, line by line.
func writeForEver(path string) error {
	ctx := context.Background()
	s, err := Open(path, Options{CopyAfter: 1, CopyEvery: 1}) // nanoseconds: always copying
	if err != nil {
		return err
	}
	go func() { // others write at the same time
		for {
			if err := s.PutReport(ctx, Report{Kind: wire.ReportKind_REPORT_EVENT, Payload: make([]byte, 500)}); err != nil {
				return
			}
		}
	}()
	begin, err := stored(s)
	if err != nil {
		return err
	}
	for n := begin + 1; ; n++ {
		objects, err := pair(n)
		if err != nil {
			return err
		}
		if err := s.Apply(ctx, objects, nil); err != nil {
			return err
		}
		if err := s.SetPodState(ctx, "u", []byte(strconv.Itoa(n))); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// stored is the number in the store; 0 in an empty one. The pair must agree.
func stored(s *Store) (int, error) {
	ctx := context.Background()
	refs, err := s.Inventory(ctx)
	if err != nil || len(refs) == 0 {
		return 0, err
	}
	left, err := s.ConfigMap(ctx, "a", "left")
	if err != nil {
		return 0, err
	}
	right, err := s.ConfigMap(ctx, "a", "right")
	if err != nil {
		return 0, err
	}
	if left.Data["key"] != right.Data["key"] {
		return 0, fmt.Errorf("half a transaction: %s and %s", left.Data["key"], right.Data["key"])
	}
	return strconv.Atoi(left.Data["key"])
}

func TestWhatIsCommittedOutlivesKill9(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	for round := range 8 {
		said := runAndKill(t, path, 1+round*7)
		s := openAt(t, path, Options{})
		if r := s.Opened().Recovery; r != nil {
			t.Fatalf("round %d: a killed writer left a damaged database: %+v", round, r)
		}
		n, err := stored(s)
		if err != nil || n < said {
			t.Fatalf("round %d: %d was committed, stored is %d, %v", round, said, n, err)
		}
		b, err := s.PodState(context.Background(), "u")
		must(t, err)
		if state, err := strconv.Atoi(string(b)); err != nil || state < said || state > n {
			t.Fatalf("round %d: %d was committed, the pod state is %s", round, said, b)
		}
		must(t, s.Close())
		if _, err := os.Stat(path + ".good"); err == nil { // the copy is whole, whenever it was made
			db, err := connectReadOnly(path + ".good")
			must(t, err)
			if err := quickCheck(db); err != nil {
				t.Errorf("round %d: the good copy: %v", round, err)
			}
			must(t, disconnect(db))
		}
	}
}

// runAndKill lets a writer run until it has said so many lines, kills it, and
// returns the last number that it said.
func runAndKill(t *testing.T, path string, lines int) (said int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	scanner := bufio.NewScanner(out)
	for i := 0; scanner.Scan(); i++ {
		said, err = strconv.Atoi(scanner.Text())
		must(t, err)
		if i+1 == lines {
			must(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait() // it was killed
	if said == 0 {
		t.Fatal("the writer said nothing")
	}
	return said
}

// TestPowerCutLosesNoMoreThanTheLastCommits opens what a disk may hold when the
// power goes: the file and its log, the log cut or garbled anywhere behind some
// commit.
func TestPowerCutLosesNoMoreThanTheLastCommits(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store.db")
	s := openAt(t, path, Options{})
	var ends []int64 // of the log, after each commit
	for n := 1; n <= 20; n++ {
		objects, err := pair(n)
		must(t, err)
		apply(t, s, objects)
		ends = append(ends, sizeOf(path+"-wal"))
	}
	file, err := os.ReadFile(path)
	must(t, err)
	log, err := os.ReadFile(path + "-wal")
	must(t, err)
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 2))
		cut := random.Int64N(int64(len(log)) + 1)
		torn := append([]byte(nil), log[:cut]...)
		if seed%2 == 1 { // the file system had given it room, and then noise was there
			for len(torn) < len(log) {
				torn = append(torn, byte(random.Uint32()))
			}
		}
		least := 0
		for n, end := range ends {
			if end <= cut {
				least = n + 1
			}
		}
		at := filepath.Join(dir, fmt.Sprint("cut-", seed), "store.db")
		must(t, os.MkdirAll(filepath.Dir(at), 0o700))
		must(t, os.WriteFile(at, file, 0o600))
		must(t, os.WriteFile(at+"-wal", torn, 0o600))
		after, err := Open(at, Options{})
		if err != nil {
			t.Fatalf("cut at %d of %d: %v", cut, len(log), err)
		}
		n, err := stored(after)
		if err != nil || n < least || n > least+1 || after.Opened().Recovery != nil {
			t.Errorf("cut at %d of %d: stored is %d, want %d; %v, %+v", cut, len(log), n, least, err, after.Opened().Recovery)
		}
		must(t, after.Close())
	}
}

// smallDisk mounts a file system of that many bytes.
func smallDisk(t *testing.T, bytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", bytes)); err != nil {
		t.Fatalf("mount a small disk (the tests run as root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes all the room there is, and gives it back when told.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "other")
	f, err := os.Create(path)
	must(t, err)
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	must(t, f.Close())
	return func() { must(t, os.Remove(path)) }
}
