package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
)

// Options of Open; the zero value is what edgecore uses.
type Options struct {
	Log *slog.Logger
	// MaxEvents bounds the events, and other reports without a key, in the outbox;
	// the oldest is dropped and counted. 0 means 1000.
	MaxEvents int
	// CopyAfter is how long after Open the first good copy is made (0: 1 min),
	// CopyEvery the shortest time between two copies (0: 1 h). A store in which
	// nothing worth copying changed is not copied again.
	CopyAfter, CopyEvery time.Duration
}

// Opened says what Open found.
type Opened struct {
	// Created: there was no database (or none that could be rescued).
	Created bool
	// SchemaBefore is the schema version that was found, 0 for a new database.
	SchemaBefore int
	// Recovery is nil when the database was found sound.
	Recovery *Recovery
}

// Recovery is what was done about a database that could not be used.
type Recovery struct {
	Reason   string    // what was wrong with it
	SetAside string    // where it lies now; empty when there was no file
	Restored bool      // the last good copy took its place; else the store began empty
	CopyTime time.Time // when that copy was made
}

// Store is the node's memory. All methods may be called at once from anywhere.
type Store struct {
	path   string
	log    *slog.Logger
	opts   Options
	opened Opened
	id     string
	// lineage counts the times that a copy took this database's place.
	lineage uint64

	db *gorm.DB

	synced   atomic.Bool   // meta synced-once
	changes  atomic.Uint64 // counts writes worth a good copy
	dropped  atomic.Uint64 // events dropped for want of room, ever
	outboxCh chan struct{}

	subMu sync.Mutex
	subs  map[*subscription]struct{}

	twins twinWrites // of whoever calls PutTwins, one at a time

	writes    chan writeRequest
	closeOnce sync.Once
	closed    chan struct{} // Close was called
	stopped   chan struct{} // the writer has ended
	damaged   chan struct{} // closed when SQLite finds the file damaged
	damage    sync.Once
	copier    sync.WaitGroup
}

// Keys of the settings that the store itself keeps.
const (
	metaStoreID       = "store-id"
	metaSyncedOnce    = "synced-once"
	metaEventsDropped = "events-dropped"
	metaLineage       = "lineage"
)

// Open opens the database at path, or makes it. A file that is not a sound
// database is moved to path.corrupt-N and path.good takes its place; without a
// good copy the store begins empty. Opened tells which. Nothing is touched when
// the database was written by a newer edgecore (ErrNewer), or when the trouble is
// not in the file itself (permissions, a failing disk).
func Open(path string, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxEvents <= 0 {
		o.MaxEvents = 1000
	}
	if o.CopyAfter <= 0 {
		o.CopyAfter = time.Minute
	}
	if o.CopyEvery <= 0 {
		o.CopyEvery = time.Hour
	}
	s := &Store{
		path: path, log: o.Log, opts: o,
		outboxCh: make(chan struct{}, 1),
		subs:     make(map[*subscription]struct{}),
		writes:   make(chan writeRequest),
		closed:   make(chan struct{}),
		stopped:  make(chan struct{}),
		damaged:  make(chan struct{}),
	}
	err := s.open()
	if errors.Is(explain(err), ErrDiskFull) && s.releaseReserve() {
		s.log.Error("the disk is full: the room kept for this is used to open the node's database; free some", "path", path)
		err = s.open()
	}
	if err != nil {
		return nil, fmt.Errorf("open the node's database %s: %w", path, explain(err))
	}
	go s.writer()
	s.copier.Add(1)
	go s.keepCopies()
	return s, nil
}

// connect opens the file for reading and writing without looking into it.
func connect(path string) (*gorm.DB, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil { // -wal and -shm inherit the mode
		return nil, err
	}
	return dial(path, url.Values{
		"_journal_mode": {"WAL"}, "_synchronous": {"FULL"}, "_busy_timeout": {"10000"},
		"_foreign_keys": {"off"}, "_txlock": {"immediate"}, "_cache_size": {"-256"},
	})
}

// connectReadOnly opens a file that nobody writes, and leaves it as it is.
func connectReadOnly(path string) (*gorm.DB, error) {
	return dial(path, url.Values{"mode": {"ro"}, "immutable": {"1"}, "_cache_size": {"-256"}})
}

// connectBeside opens a database that is in use for reading.
func connectBeside(path string) (*gorm.DB, error) {
	return dial(path, url.Values{"mode": {"ro"}, "_busy_timeout": {"10000"}, "_cache_size": {"-256"}})
}

func dial(path string, query url.Values) (*gorm.DB, error) {
	dsn := (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}).String()
	pool, err := sql.Open(sqlite.DriverName, dsn)
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(1) // one writer, and the same one reads: two page caches would be one too many
	db, err := gorm.Open(&sqlite.Dialector{Conn: pool}, &gorm.Config{
		SkipDefaultTransaction: true,
		DisableAutomaticPing:   true,
		Logger:                 logger.Discard,
	})
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return db, nil
}

func disconnect(db *gorm.DB) error {
	pool, err := db.DB()
	if err != nil {
		return err
	}
	return pool.Close()
}

// load reads the settings that live in memory while the store is open.
func (s *Store) load() error {
	ctx := context.Background()
	id, err := s.Meta(ctx, metaStoreID)
	if errors.Is(err, ErrNotFound) {
		b := make([]byte, 16)
		rand.Read(b)
		id = []byte(hex.EncodeToString(b))
		err = putMeta(s.db, metaStoreID, id)
	}
	if err != nil {
		return err
	}
	s.id = string(id)
	synced, err := s.Meta(ctx, metaSyncedOnce)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	s.synced.Store(string(synced) == "true")
	dropped, err := s.Meta(ctx, metaEventsDropped)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	var n uint64
	if _, err := fmt.Sscan(string(dropped), &n); err == nil {
		s.dropped.Store(n)
	}
	lineage, err := s.Meta(ctx, metaLineage)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if s.lineage, err = strconv.ParseUint(string(lineage), 10, 64); err != nil {
		s.lineage = 0
	}
	return s.loadTwins()
}

// Close writes everything into the one file and closes it.
func (s *Store) Close() error {
	var err error
	s.closeOnce.Do(func() {
		close(s.closed)
		<-s.stopped
		s.copier.Wait()
		s.closeSubscriptions()
		err = disconnect(s.db)
	})
	if err != nil {
		return fmt.Errorf("close the node's database %s: %w", s.path, err)
	}
	return nil
}

// Opened tells what Open found.
func (s *Store) Opened() Opened { return s.opened }

// ID names this database; it is made once and told to the hub, which thereby
// tells one node that came back from two machines with one certificate.
func (s *Store) ID() string { return s.id }

// Lineage counts the times that the good copy had to take the database's place. Its
// numbers (versions of twins, of messages) then went back, and compare with those of
// before no more.
func (s *Store) Lineage() uint64 { return s.lineage }

// SyncedOnce says whether the hub has ever told this database everything. Until
// then an unknown pod in the runtime may be one that this node should run, so
// nobody may remove it. It is forgotten when a copy had to be restored.
func (s *Store) SyncedOnce() bool { return s.synced.Load() }

// MarkSynced remembers that the hub's word is complete.
func (s *Store) MarkSynced(ctx context.Context) error {
	if s.synced.Load() {
		return nil
	}
	if err := s.SetMeta(ctx, metaSyncedOnce, []byte("true")); err != nil {
		return err
	}
	s.synced.Store(true)
	s.notify([]Change{{}}) // the zero change: look at everything again
	return nil
}

// Meta returns a small setting, or ErrNotFound.
func (s *Store) Meta(ctx context.Context, key string) ([]byte, error) {
	var rows []metaRow
	if err := s.read(ctx).Where("key = ?", key).Limit(1).Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("read setting %s: %w", key, s.explain(err))
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("setting %s: %w", key, ErrNotFound)
	}
	return rows[0].Value, nil
}

// SetMeta keeps a small setting.
func (s *Store) SetMeta(ctx context.Context, key string, value []byte) error {
	err := s.write(ctx, func(tx *gorm.DB) error {
		return putMeta(tx, key, value)
	})
	if err != nil {
		return fmt.Errorf("store setting %s: %w", key, err)
	}
	return nil
}

func putMeta(tx *gorm.DB, key string, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&metaRow{Key: key, Value: value}).Error
}

// read is a handle for one statement outside a transaction.
func (s *Store) read(ctx context.Context) *gorm.DB { return s.db.WithContext(ctx) }

// Damaged is closed when SQLite finds, while in use, that the file is damaged.
// Whoever runs the store should end then: the next Open restores what it can.
func (s *Store) Damaged() <-chan struct{} { return s.damaged }

func (s *Store) explain(err error) error {
	if err == nil {
		return nil
	}
	if damaged(err) {
		s.damage.Do(func() { close(s.damaged) })
	}
	select {
	case <-s.closed:
		return fmt.Errorf("%w: %w", ErrClosed, err)
	default:
		return explain(err)
	}
}
