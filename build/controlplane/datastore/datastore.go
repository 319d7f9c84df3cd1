// Package datastore keeps the cluster's objects: kine, which speaks etcd's protocol, on one
// SQLite file, behind a unix socket.
//
// It owns the files state.db, state.db-wal and state.db-shm and the socket. The control plane's
// front door opens it before the apiserver and closes it after; the apiserver's storage layer is
// its only client. It never listens on a network.
//
// A write that the apiserver acknowledged survives a kill and a power cut: the database is in WAL
// mode with synchronous=FULL, so SQLite calls fsync on the log before a commit returns, and kine
// answers the apiserver after the commit. (NORMAL, kine's own default, would flush only at
// checkpoints and could lose the last seconds before a power cut.)
package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	_ "github.com/mattn/go-sqlite3" // registers the database/sql driver that Check uses
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

const (
	// emulatedVersion is the etcd release whose features kine offers; from it the apiserver
	// concludes that lists can be answered from its watch cache.
	emulatedVersion = "3.6.11"
	notifyInterval  = 5 * time.Second
	// maxRequest is the largest object that can be written, as in etcd (1.5 MiB), with room for
	// the message around it.
	maxRequest = 2 << 20
	maxReply   = 1<<31 - 1
	stopGrace  = 5 * time.Second
	// connections bounds the readers; each may cache cacheKiB of pages.
	connections = 16
	cacheKiB    = 1024
)

// Store is an open database with its socket.
type Store struct {
	path     string
	listener net.Listener
	server   *grpc.Server
	served   chan error
	close    context.CancelFunc
	pending  *sync.WaitGroup
}

// Check opens the database file alone and verifies it. A file that does not exist is fine. The
// caller must hold whatever lock keeps a second control plane away.
func Check(ctx context.Context, path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("database %s: %w; make it readable for the user that runs the control plane", path, err)
	}
	if err := check(ctx, path); err != nil {
		return fmt.Errorf("database %s is damaged or cannot be used: %w; stop here, restore state.db from a backup of the data directory, or move it and its -wal and -shm files away to start with an empty cluster", path, err)
	}
	return nil
}

func check(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite3", dsn(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return errors.New(verdict)
	}
	return nil
}

// dsn names the file and how every connection to it behaves.
func dsn(path string) string {
	// No "file:" in front: kine and the driver take what stands before the question mark as it is.
	return path + "?" + url.Values{
		"_journal_mode":    {"WAL"},
		"_synchronous":     {"FULL"},
		"_busy_timeout":    {"30000"},
		"_txlock":          {"immediate"},
		"_stmt_cache_size": {"20"},
		"_cache_size":      {fmt.Sprintf("-%d", cacheKiB)},
	}.Encode()
}

// Open opens or makes the database in path and serves it on socket until Close. The socket's path
// may be relative, which keeps it under the kernel's limit of 107 bytes in a deep data directory.
func Open(path, socket string) (*Store, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{path: path, close: cancel, pending: &sync.WaitGroup{}, served: make(chan error, 1)}
	if err := s.open(ctx, path, socket); err != nil {
		cancel()
		s.pending.Wait()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, path, socket string) error {
	backend, _, err := sqlite.NewVariant(ctx, s.pending, "sqlite3", &drivers.Config{
		DataSourceName:        dsn(path),
		ConnectionPoolConfig:  generic.ConnectionPoolConfig{MaxIdle: connections, MaxOpen: connections},
		CompactInterval:       5 * time.Minute,
		CompactIntervalJitter: 0,
		CompactTimeout:        5 * time.Second,
		CompactMinRetain:      1000,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
	})
	if err != nil {
		return err
	}
	if err := backend.Start(ctx); err != nil {
		return err
	}
	// What is left there belongs to a control plane that was killed: the data directory is locked.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.listener, err = net.Listen("unix", socket); err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(err, s.listener.Close())
	}
	s.server = grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxReply),
	)
	server.New(backend, "unix", notifyInterval, emulatedVersion).Register(s.server)
	go func() { s.served <- s.server.Serve(s.listener) }()
	slog.Debug("database open", "path", filepath.Base(path), "socket", socket)
	return nil
}

// Done yields what ended the socket's service, if it ends before Close.
func (s *Store) Done() <-chan error { return s.served }

// Close lets running requests end for a few seconds, closes the database, and folds the
// write-ahead log into its file, so that state.db alone is a whole backup.
func (s *Store) Close() error {
	timer := time.AfterFunc(stopGrace, s.server.Stop)
	defer timer.Stop()
	s.server.GracefulStop()
	s.close()
	s.pending.Wait()
	// A reader of kine's may still hold a connection, which would keep SQLite from folding.
	if err := fold(s.path); err != nil {
		return fmt.Errorf("close database %s: %w; nothing is lost: its -wal file belongs to it and is read at the next start", s.path, err)
	}
	return nil
}

func fold(path string) (err error) {
	db, err := sql.Open("sqlite3", dsn(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var busy, logged, folded int
	if err := db.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &logged, &folded); err != nil {
		return err
	}
	if busy != 0 {
		return errors.New("the write-ahead log is still in use")
	}
	return nil
}
