package store

import (
	"errors"
	"fmt"

	"gorm.io/gorm"
)

// The rows. Their tables are made by the migrations below, never by GORM's
// AutoMigrate: what an old database turns into must be readable here.

// objectRow is one relayed object. Version is stored beside the payload so that
// inventories and digests read no payload.
type objectRow struct {
	Kind      int32  `gorm:"primaryKey"`
	UID       string `gorm:"primaryKey;column:uid"`
	Namespace string
	Name      string
	Version   []byte
	Payload   []byte
}

func (objectRow) TableName() string { return "objects" }

// outboxRow is one report that waits for the hub. SQLite hands out the ids and
// never uses one twice (AUTOINCREMENT), so a late answer about a replaced report
// cannot settle its successor.
type outboxRow struct {
	ID      uint64 `gorm:"primaryKey;autoIncrement"`
	Kind    int32
	Key     string
	Payload []byte
}

func (outboxRow) TableName() string { return "outbox" }

// podStateRow is edge/pod's memory of one pod; only edge/pod reads the data.
type podStateRow struct {
	UID  string `gorm:"primaryKey;column:uid"`
	Data []byte
}

func (podStateRow) TableName() string { return "pod_states" }

// tokenRow is one service account token. Times are Unix seconds.
type tokenRow struct {
	PodUID            string `gorm:"primaryKey;column:pod_uid"`
	ServiceAccount    string `gorm:"primaryKey"`
	Audience          string `gorm:"primaryKey"`
	ExpirationSeconds int64  `gorm:"primaryKey;autoIncrement:false"`
	Token             string
	Issued            int64
	Expires           int64
}

func (tokenRow) TableName() string { return "tokens" }

// metaRow is one small setting.
type metaRow struct {
	Key   string `gorm:"primaryKey"`
	Value []byte
}

func (metaRow) TableName() string { return "meta" }

// migration brings a database from the version before to its own.
type migration struct {
	version int
	sql     []string
}

// migrations are applied in order, each in one transaction together with its
// number (PRAGMA user_version). A released one is never edited; testdata keeps a
// database of every earlier version.
func migrations() []migration {
	return []migration{
		{version: 1, sql: []string{
			`CREATE TABLE objects (
				kind INTEGER NOT NULL, uid TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
				version BLOB NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (kind, uid))`,
			`CREATE INDEX objects_by_name ON objects (kind, namespace, name)`,
			`CREATE TABLE outbox (
				id INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL)`,
			`CREATE TABLE pod_states (uid TEXT PRIMARY KEY, data BLOB NOT NULL)`,
			`CREATE TABLE tokens (
				pod_uid TEXT NOT NULL, service_account TEXT NOT NULL, audience TEXT NOT NULL,
				expiration_seconds INTEGER NOT NULL, token TEXT NOT NULL, issued INTEGER NOT NULL, expires INTEGER NOT NULL,
				PRIMARY KEY (pod_uid, service_account, audience, expiration_seconds))`,
			`CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL)`,
		}},
		// A status replaces its predecessor without a look at every waiting event.
		{version: 2, sql: []string{`CREATE INDEX outbox_by_key ON outbox (key, kind)`}},
		// Devices and routed messages; see twins.go and messages.go.
		{version: 3, sql: []string{
			`CREATE TABLE twin_devices (id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE)`,
			`CREATE TABLE twin_rows (device INTEGER NOT NULL, part TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (device, part)) WITHOUT ROWID`,
			`CREATE TABLE twin_log (seq INTEGER PRIMARY KEY, device INTEGER NOT NULL, part TEXT NOT NULL, data BLOB NOT NULL)`,
			`CREATE TABLE twin_values (
				id INTEGER PRIMARY KEY AUTOINCREMENT, device INTEGER NOT NULL, property TEXT NOT NULL, number INTEGER NOT NULL, value TEXT NOT NULL, at INTEGER NOT NULL)`,
			`CREATE TABLE messages (
				number INTEGER PRIMARY KEY AUTOINCREMENT, route TEXT NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL, at INTEGER NOT NULL)`,
			`CREATE TABLE routes (uid TEXT PRIMARY KEY, dropped INTEGER NOT NULL)`,
		}},
	}
}

// schemaVersion is what this build writes.
func schemaVersion() int {
	m := migrations()
	return m[len(m)-1].version
}

// ErrNewer is returned for a database that a newer edgecore wrote.
var ErrNewer = errors.New("the database was written by a newer edgecore")

// migrate brings the database up to date and returns the version it had.
func migrate(db *gorm.DB) (from int, err error) {
	if err := db.Raw("PRAGMA user_version").Scan(&from).Error; err != nil {
		return 0, fmt.Errorf("read the schema version: %w", err)
	}
	if from > schemaVersion() {
		return from, fmt.Errorf("%w: its schema is version %d, this edgecore knows up to %d: install the newer edgecore again, or move the database away and start afresh",
			ErrNewer, from, schemaVersion())
	}
	for _, m := range migrations() {
		if m.version <= from {
			continue
		}
		err := db.Transaction(func(tx *gorm.DB) error {
			for _, sql := range m.sql {
				if err := tx.Exec(sql).Error; err != nil {
					return err
				}
			}
			return tx.Exec(fmt.Sprintf("PRAGMA user_version = %d", m.version)).Error
		})
		if err != nil {
			return from, fmt.Errorf("bring the schema to version %d: %w", m.version, err)
		}
	}
	return from, nil
}
