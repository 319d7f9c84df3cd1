package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"gorm.io/gorm"
)

// The devices' memory is written far more often than anything else here, so it is
// laid out for an SD card: what changes goes to the end of a log, many changes to a
// page, and is folded into the table of the latest rows now and then. Every row is
// whole, so that replaying the log is taking its last word.

// TwinRow is one part of what is remembered of a device: a property, or with an
// empty Part the device itself. Only edge/device reads the data.
type TwinRow struct {
	UID, Part string
	Data      []byte
}

// TwinValue is one value of a property that keeps a history.
type TwinValue struct {
	// ID is given by PutTwins and grows with time.
	ID            uint64
	UID, Property string
	Number        uint64
	Text          string
	At            int64
}

// TwinBatch is committed as a whole.
type TwinBatch struct {
	Rows []TwinRow
	// Values are added; PutTwins fills in their IDs.
	Values []*TwinValue
	// Drop are IDs of values that are not needed any more.
	Drop []uint64
	// Forget are devices of which nothing is kept; it comes before Rows and Values.
	Forget []string
	// ForgetParts are rows that end; Data is not looked at.
	ForgetParts []TwinRow
}

// Empty says that there is nothing to commit.
func (b *TwinBatch) Empty() bool {
	return len(b.Rows)+len(b.Values)+len(b.Drop)+len(b.Forget)+len(b.ForgetParts) == 0
}

// foldAt is how many rows the log may have: a few hundred KiB.
const foldAt = 4096

// twinWrites is what commits of twins must know of those before.
type twinWrites struct {
	devices map[string]int64 // numbers of devices that are in the table, by uid
	logged  int              // rows in the log
	lastID  uint64           // of a value
}

// PutTwins commits a batch.
func (s *Store) PutTwins(ctx context.Context, b *TwinBatch) error {
	if b.Empty() {
		return nil
	}
	var after twinWrites
	err := s.write(ctx, func(tx *gorm.DB) error {
		t := twinTx{Tx: tx.Statement.ConnPool, ctx: ctx, twinWrites: twinWrites{devices: map[string]int64{}, logged: s.twins.logged, lastID: s.twins.lastID}, known: s.twins.devices}
		err := t.put(b)
		after = t.twinWrites
		return err
	})
	if err != nil {
		return fmt.Errorf("store what is known of devices: %w", err)
	}
	s.twinsDone(b, after)
	s.changes.Add(1)
	return nil
}

// twinsDone remembers what a commit has left behind. Commits of twins come from one
// goroutine, edge/device's, one after the other.
func (s *Store) twinsDone(b *TwinBatch, after twinWrites) {
	for _, uid := range b.Forget {
		if _, again := after.devices[uid]; !again {
			delete(s.twins.devices, uid)
		}
	}
	for uid, n := range after.devices {
		s.twins.devices[uid] = n
	}
	s.twins.logged, s.twins.lastID = after.logged, after.lastID
}

// loadTwins reads what twinWrites must know.
func (s *Store) loadTwins() error {
	s.twins.devices = make(map[string]int64)
	var devices []struct {
		ID  int64
		UID string
	}
	var logged, last int64
	err := s.db.Raw("SELECT id, uid FROM twin_devices").Scan(&devices).Error
	if err == nil {
		err = s.db.Raw("SELECT count(*) FROM twin_log").Scan(&logged).Error
	}
	if err == nil {
		err = s.db.Raw("SELECT coalesce(max(id), 0) FROM twin_values").Scan(&last).Error
	}
	if err != nil {
		return fmt.Errorf("read the devices: %w", err)
	}
	for _, d := range devices {
		s.twins.devices[d.UID] = d.ID
	}
	s.twins.logged, s.twins.lastID = int(logged), uint64(last)
	return nil
}

// execer is what a transaction offers beside GORM, which is too slow for rows that
// come by thousands a second.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// twinTx is one transaction.
type twinTx struct {
	Tx    execer
	ctx   context.Context
	known map[string]int64 // before this transaction
	twinWrites
}

func (t *twinTx) exec(query string, args ...any) error {
	_, err := t.Tx.ExecContext(t.ctx, query, args...)
	return err
}

func (t *twinTx) put(b *TwinBatch) error {
	forgotten := make(map[string]bool, len(b.Forget))
	for _, uid := range b.Forget {
		if err := t.forget(uid); err != nil {
			return err
		}
		forgotten[uid] = true
	}
	for _, r := range b.ForgetParts {
		n, err := t.device(r.UID, forgotten)
		if err == nil {
			err = t.exec("DELETE FROM twin_rows WHERE device = ? AND part = ?", n, r.Part)
		}
		if err == nil {
			err = t.exec("DELETE FROM twin_log WHERE device = ? AND part = ?", n, r.Part)
		}
		if err == nil {
			err = t.exec("DELETE FROM twin_values WHERE device = ? AND property = ?", n, r.Part)
		}
		if err != nil {
			return err
		}
	}
	if err := t.rows(b.Rows, forgotten); err != nil {
		return err
	}
	if err := t.values(b.Values, forgotten); err != nil {
		return err
	}
	if err := t.dropFrom("twin_values", "id", b.Drop); err != nil {
		return err
	}
	if t.logged >= foldAt {
		return t.fold()
	}
	return nil
}

func (t *twinTx) forget(uid string) error {
	for _, table := range []string{"twin_rows", "twin_log", "twin_values"} {
		if err := t.exec("DELETE FROM "+table+" WHERE device = (SELECT id FROM twin_devices WHERE uid = ?)", uid); err != nil {
			return err
		}
	}
	return t.exec("DELETE FROM twin_devices WHERE uid = ?", uid)
}

// device is the number of a device, which is made when it has none.
func (t *twinTx) device(uid string, forgotten map[string]bool) (int64, error) {
	if n, ok := t.devices[uid]; ok {
		return n, nil
	}
	if n, ok := t.known[uid]; ok && !forgotten[uid] {
		return n, nil
	}
	var n int64
	err := t.exec("INSERT OR IGNORE INTO twin_devices (uid) VALUES (?)", uid)
	if err == nil {
		err = t.Tx.QueryRowContext(t.ctx, "SELECT id FROM twin_devices WHERE uid = ?", uid).Scan(&n)
	}
	t.devices[uid] = n
	return n, err
}

// atOnce is how many rows go into one statement.
const atOnce = 64

// insert adds rows, many to a statement. row returns the values of row i.
func (t *twinTx) insert(into string, columns, rows int, row func(i int) ([]any, error)) error {
	tuple := "(?" + strings.Repeat(",?", columns-1) + ")"
	for at := 0; at < rows; at += atOnce {
		n := min(atOnce, rows-at)
		args := make([]any, 0, n*columns)
		for i := at; i < at+n; i++ {
			values, err := row(i)
			if err != nil {
				return err
			}
			args = append(args, values...)
		}
		if err := t.exec("INSERT INTO "+into+" VALUES "+tuple+strings.Repeat(","+tuple, n-1), args...); err != nil {
			return err
		}
	}
	return nil
}

func (t *twinTx) rows(rows []TwinRow, forgotten map[string]bool) error {
	t.logged += len(rows)
	return t.insert("twin_log (device, part, data)", 3, len(rows), func(i int) ([]any, error) {
		n, err := t.device(rows[i].UID, forgotten)
		return []any{n, rows[i].Part, rows[i].Data}, err
	})
}

func (t *twinTx) values(values []*TwinValue, forgotten map[string]bool) error {
	return t.insert("twin_values (id, device, property, number, value, at)", 6, len(values), func(i int) ([]any, error) {
		v := values[i]
		t.lastID++
		v.ID = t.lastID
		n, err := t.device(v.UID, forgotten)
		return []any{v.ID, n, v.Property, v.Number, v.Text, v.At}, err
	})
}

// fold makes the log's last words the rows.
func (t *twinTx) fold() error {
	t.logged = 0
	err := t.exec("INSERT OR REPLACE INTO twin_rows (device, part, data) SELECT device, part, data FROM twin_log " +
		"WHERE seq IN (SELECT max(seq) FROM twin_log GROUP BY device, part)")
	if err == nil {
		err = t.exec("DELETE FROM twin_log")
	}
	return err
}

// Twins calls each with the latest row of every part of every device.
func (s *Store) Twins(ctx context.Context, each func(TwinRow)) error {
	rows, err := s.read(ctx).Raw("SELECT d.uid, x.part, x.data FROM (" +
		"SELECT device, part, data FROM twin_rows r WHERE NOT EXISTS (SELECT 1 FROM twin_log l WHERE l.device = r.device AND l.part = r.part) " +
		"UNION ALL SELECT device, part, data FROM twin_log WHERE seq IN (SELECT max(seq) FROM twin_log GROUP BY device, part)" +
		") x JOIN twin_devices d ON d.id = x.device").Rows()
	if err != nil {
		return fmt.Errorf("read what is known of devices: %w", s.explain(err))
	}
	defer rows.Close()
	for rows.Next() {
		var r TwinRow
		if err := rows.Scan(&r.UID, &r.Part, &r.Data); err != nil {
			return fmt.Errorf("read what is known of devices: %w", s.explain(err))
		}
		each(r)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read what is known of devices: %w", s.explain(err))
	}
	return nil
}

// TwinValueIDs calls each with every value of a history, oldest first, without its
// text.
func (s *Store) TwinValueIDs(ctx context.Context, each func(TwinValue)) error {
	return s.twinValues(ctx, "SELECT v.id, d.uid, v.property, v.number, '', v.at FROM twin_values v JOIN twin_devices d ON d.id = v.device ORDER BY v.id", each)
}

// TwinValues reads values of a history, oldest first; those that are not there any
// more are left out.
func (s *Store) TwinValues(ctx context.Context, ids []uint64) (values []TwinValue, err error) {
	err = s.twinValues(ctx, "SELECT v.id, d.uid, v.property, v.number, v.value, v.at FROM twin_values v JOIN twin_devices d ON d.id = v.device "+
		"WHERE v.id IN ? ORDER BY v.id", func(v TwinValue) { values = append(values, v) }, ids)
	return values, err
}

func (s *Store) twinValues(ctx context.Context, query string, each func(TwinValue), args ...any) error {
	rows, err := s.read(ctx).Raw(query, args...).Rows()
	if err != nil {
		return fmt.Errorf("read the history of devices: %w", s.explain(err))
	}
	defer rows.Close()
	for rows.Next() {
		var v TwinValue
		if err := rows.Scan(&v.ID, &v.UID, &v.Property, &v.Number, &v.Text, &v.At); err != nil {
			return fmt.Errorf("read the history of devices: %w", s.explain(err))
		}
		each(v)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the history of devices: %w", s.explain(err))
	}
	return nil
}
