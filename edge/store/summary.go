package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Summary is what the store holds, by kind, for people. It is worked out when it is
// asked for.
type Summary struct {
	Objects map[wire.Kind]int64
	// Reports are those of the outbox, by kind.
	Reports map[wire.ReportKind]int64
	// Values are those of devices' histories, Messages those of Routes, which the hub has
	// yet to take.
	Values, Messages int64
	// Oldest is when the oldest event, value or message was put, by this node's clock;
	// zero: there is none. Of statuses only the latest is kept, so they have no age.
	Oldest        time.Time
	EventsDropped uint64 // since the database was made

	Database, Log int64 // bytes of the file, and of its write-ahead log
	Copy          int64 // bytes of the last good copy; 0: there is none yet
	CopyTime      time.Time
	Reserve       int64 // bytes kept for a full disk
}

// Summary counts what there is.
func (s *Store) Summary(ctx context.Context) (Summary, error) {
	out := Summary{
		Objects: map[wire.Kind]int64{}, Reports: map[wire.ReportKind]int64{}, EventsDropped: s.dropped.Load(),
		Database: sizeOf(s.path), Log: sizeOf(s.path + "-wal"), Reserve: sizeOf(s.reservePath()),
	}
	if info, err := os.Stat(s.goodPath()); err == nil {
		out.Copy, out.CopyTime = info.Size(), info.ModTime()
	}
	type count struct {
		Kind int32
		N    int64
	}
	type span struct{ N, At int64 }
	var objects, reports []count
	var values, messages span
	db := s.read(ctx)
	err := errors.Join(
		db.Raw("SELECT kind, count(*) AS n FROM objects GROUP BY kind").Scan(&objects).Error,
		db.Raw("SELECT kind, count(*) AS n FROM outbox GROUP BY kind").Scan(&reports).Error,
		db.Raw("SELECT count(*) AS n, coalesce(min(at), 0) AS at FROM twin_values").Scan(&values).Error,
		db.Raw("SELECT count(*) AS n, coalesce(min(at), 0) AS at FROM messages").Scan(&messages).Error)
	if err != nil {
		return out, fmt.Errorf("count the store's rows: %w", s.explain(err))
	}
	for _, c := range objects {
		out.Objects[wire.Kind(c.Kind)] = c.N
	}
	for _, c := range reports {
		out.Reports[wire.ReportKind(c.Kind)] = c.N
	}
	out.Values, out.Messages = values.N, messages.N
	out.Oldest = earlier(out.Oldest, moment(values.At))
	out.Oldest = earlier(out.Oldest, moment(messages.At))
	event, err := s.oldestEvent(ctx)
	out.Oldest = earlier(out.Oldest, event)
	return out, err
}

// oldestEvent is when the event that has waited longest last happened.
func (s *Store) oldestEvent(ctx context.Context) (time.Time, error) {
	var rows []outboxRow
	err := s.read(ctx).Where("kind = ?", int32(wire.ReportKind_REPORT_EVENT)).Order("id").Limit(1).Find(&rows).Error
	if err != nil || len(rows) == 0 {
		return time.Time{}, s.explain(err)
	}
	var event corev1.Event
	if event.Unmarshal(rows[0].Payload) != nil {
		return time.Time{}, nil // its age is not worth an error
	}
	return event.LastTimestamp.Time, nil
}

func moment(ms int64) time.Time {
	if ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// earlier is the earlier of two times of which either may not be known.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
