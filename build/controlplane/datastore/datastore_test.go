package datastore

import (
	"context"
	"database/sql"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestConnectionsCommitDurably(t *testing.T) {
	db, err := sql.Open("sqlite3", dsn(filepath.Join(t.TempDir(), databaseFile)))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var mode string
	if err := db.QueryRow("PRAGMA journal_mode").Scan(&mode); err != nil {
		t.Fatal(err)
	}
	var synchronous int
	if err := db.QueryRow("PRAGMA synchronous").Scan(&synchronous); err != nil {
		t.Fatal(err)
	}
	if mode != "wal" || synchronous != 2 {
		t.Errorf("journal_mode=%s synchronous=%d, want wal and 2 (FULL)", mode, synchronous)
	}
}

const databaseFile = "state.db"

// client opens the store's socket as etcd's clients do.
func client(t *testing.T, socket string) etcdserverpb.KVClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:kine", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return etcdserverpb.NewKVClient(conn)
}

// create is the transaction by which the apiserver creates an object.
func create(key, value string) *etcdserverpb.TxnRequest {
	return &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{
			Key: []byte(key), Target: etcdserverpb.Compare_MOD, Result: etcdserverpb.Compare_EQUAL,
			TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: 0},
		}},
		Success: []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestPut{
			RequestPut: &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)},
		}}},
		Failure: []*etcdserverpb.RequestOp{},
	}
}

func TestClosedDatabaseIsOneFileThatHoldsEverything(t *testing.T) {
	// Not t.TempDir() for the socket: its length is bounded by the kernel.
	short, err := os.MkdirTemp("", "kine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	socket := filepath.Join(short, "s")
	path := filepath.Join(t.TempDir(), databaseFile)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	s, err := Open(path, socket)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := client(t, socket).Txn(ctx, create("/registry/a", "one"))
	if err != nil || !reply.Succeeded {
		t.Fatalf("create: %v, succeeded %v", err, reply.GetSucceeded())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// A copy of the file alone, without its log, is the backup that the documentation promises.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), databaseFile)
	if err := os.WriteFile(backup, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(ctx, backup); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(backup, socket); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	found, err := client(t, socket).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("/registry/a"), Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(found.Kvs) != 1 || string(found.Kvs[0].Value) != "one" {
		t.Errorf("the backup answers %v, want the value one", found.Kvs)
	}
}

func TestDamagedDatabaseIsRefusedAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), databaseFile)
	garbage := []byte(strings.Repeat("not a database ", 1000))
	if err := os.WriteFile(path, garbage, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Check(t.Context(), path)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("got %v, want an error that names the file and the remedy", err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(garbage) {
		t.Error("the damaged file was changed")
	}
}

func TestMissingDatabaseIsFine(t *testing.T) {
	path := filepath.Join(t.TempDir(), databaseFile)
	if err := Check(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the check made the file")
	}
}
