package store

import (
	"context"
	"fmt"
	"strings"

	"gorm.io/gorm"
)

// Message is a routed application message that waits for the hub.
type Message struct {
	Number  uint64 // given by PutMessages; it grows over all routes and is never used twice
	Route   string // the route's uid
	Topic   string
	Payload []byte
	At      int64 // milliseconds since 1970
}

// MessageBatch is committed as a whole.
type MessageBatch struct {
	// Add are added in this order; PutMessages fills in their Numbers.
	Add []*Message
	// Drop are Numbers that are settled or given up.
	Drop []uint64
	// Dropped is how many were given up, by route, since the database was made.
	Dropped map[string]uint64
	// Forget are routes of which nothing is kept.
	Forget []string
}

// PutMessages commits a batch.
func (s *Store) PutMessages(ctx context.Context, b *MessageBatch) error {
	err := s.write(ctx, func(tx *gorm.DB) error {
		t := twinTx{Tx: tx.Statement.ConnPool, ctx: ctx}
		for _, uid := range b.Forget {
			if err := t.exec("DELETE FROM messages WHERE route = ?", uid); err != nil {
				return err
			}
			if err := t.exec("DELETE FROM routes WHERE uid = ?", uid); err != nil {
				return err
			}
		}
		for _, m := range b.Add {
			payload := m.Payload
			if payload == nil {
				payload = []byte{}
			}
			res, err := t.Tx.ExecContext(ctx, "INSERT INTO messages (route, topic, payload, at) VALUES (?,?,?,?)", m.Route, m.Topic, payload, m.At)
			if err != nil {
				return err
			}
			n, err := res.LastInsertId()
			if err != nil {
				return err
			}
			m.Number = uint64(n)
		}
		if err := t.dropFrom("messages", "number", b.Drop); err != nil {
			return err
		}
		for uid, n := range b.Dropped {
			if err := t.exec("INSERT OR REPLACE INTO routes (uid, dropped) VALUES (?,?)", uid, n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store %d routed messages: %w", len(b.Add), err)
	}
	s.changes.Add(1)
	return nil
}

// MessageIndex calls each with every message that waits, oldest first: its number,
// route and size.
func (s *Store) MessageIndex(ctx context.Context, each func(number uint64, route string, size int)) error {
	rows, err := s.read(ctx).Raw("SELECT number, route, length(topic) + length(payload) FROM messages ORDER BY number").Rows()
	if err != nil {
		return fmt.Errorf("read the routed messages: %w", s.explain(err))
	}
	defer rows.Close()
	for rows.Next() {
		var number uint64
		var route string
		var size int
		if err := rows.Scan(&number, &route, &size); err != nil {
			return fmt.Errorf("read the routed messages: %w", s.explain(err))
		}
		each(number, route, size)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the routed messages: %w", s.explain(err))
	}
	return nil
}

// Messages reads messages by number, oldest first; those that are not there any more
// are left out.
func (s *Store) Messages(ctx context.Context, numbers []uint64) ([]Message, error) {
	var messages []Message
	err := s.read(ctx).Raw("SELECT number, route, topic, payload, at FROM messages WHERE number IN ? ORDER BY number", numbers).Scan(&messages).Error
	if err != nil {
		return nil, fmt.Errorf("read the routed messages: %w", s.explain(err))
	}
	return messages, nil
}

// RoutesDropped is how many messages were given up, by route.
func (s *Store) RoutesDropped(ctx context.Context) (map[string]uint64, error) {
	var rows []struct {
		UID     string
		Dropped uint64
	}
	if err := s.read(ctx).Raw("SELECT uid, dropped FROM routes").Scan(&rows).Error; err != nil {
		return nil, fmt.Errorf("read what routes have dropped: %w", s.explain(err))
	}
	dropped := make(map[string]uint64, len(rows))
	for _, r := range rows {
		dropped[r.UID] = r.Dropped
	}
	return dropped, nil
}

// dropFrom deletes rows by number.
func (t *twinTx) dropFrom(table, column string, ids []uint64) error {
	for at := 0; at < len(ids); at += atOnce {
		n := min(atOnce, len(ids)-at)
		args := make([]any, n)
		for i := range n {
			args[i] = ids[at+i]
		}
		if err := t.exec("DELETE FROM "+table+" WHERE "+column+" IN (?"+strings.Repeat(",?", n-1)+")", args...); err != nil {
			return err
		}
	}
	return nil
}
