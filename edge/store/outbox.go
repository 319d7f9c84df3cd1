package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"gorm.io/gorm"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Report is one thing to tell the hub.
type Report struct {
	Kind wire.ReportKind
	// Key names what the report is about; a later report of the same kind and key
	// replaces the earlier one. Reports without a key are all kept in their order.
	// Of these, and of events with a key, there are at most Options.MaxEvents.
	Key     string
	Payload []byte
}

// PutReport keeps a report until the hub has settled it.
func (s *Store) PutReport(ctx context.Context, r Report) error {
	if r.Payload == nil {
		r.Payload = []byte{}
	}
	var dropped int64
	err := s.write(ctx, func(tx *gorm.DB) error {
		dropped = 0
		more := true // rows than before
		if r.Key != "" {
			res := tx.Where("kind = ? AND key = ?", int32(r.Kind), r.Key).Delete(&outboxRow{})
			if res.Error != nil {
				return res.Error
			}
			more = res.RowsAffected == 0
		}
		if err := tx.Create(&outboxRow{Kind: int32(r.Kind), Key: r.Key, Payload: r.Payload}).Error; err != nil {
			return err
		}
		event := int32(wire.ReportKind_REPORT_EVENT)
		if !more || r.Key != "" && int32(r.Kind) != event {
			return nil
		}
		oldest := tx.Model(&outboxRow{}).Select("id").Where("key = '' OR kind = ?", event).Order("id DESC").Offset(s.opts.MaxEvents).Limit(-1)
		res := tx.Where("id IN (?)", oldest).Delete(&outboxRow{})
		if res.Error != nil || res.RowsAffected == 0 {
			return res.Error
		}
		dropped = res.RowsAffected
		return tx.Exec("INSERT INTO meta (key, value) VALUES (?, CAST(? AS BLOB)) "+
			"ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + ? AS BLOB)",
			metaEventsDropped, strconv.FormatInt(dropped, 10), dropped).Error
	})
	if err != nil {
		return fmt.Errorf("store a report (%s %s): %w", r.Kind, r.Key, err)
	}
	s.dropped.Add(uint64(dropped))
	select {
	case s.outboxCh <- struct{}{}:
	default:
	}
	return nil
}

// OutboxChanged is signalled (capacity 1) after reports were put. It serves one
// reader, edge/uplink.
func (s *Store) OutboxChanged() <-chan struct{} { return s.outboxCh }

// Outbox returns up to limit unsettled reports with ids above afterID, oldest first.
func (s *Store) Outbox(ctx context.Context, afterID uint64, limit int) ([]*wire.Report, error) {
	var rows []outboxRow
	if err := s.read(ctx).Where("id > ?", afterID).Order("id").Limit(limit).Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("read the outbox: %w", s.explain(err))
	}
	reports := make([]*wire.Report, len(rows))
	for i, r := range rows {
		reports[i] = reportOf(r)
	}
	return reports, nil
}

// Waiting names an unsettled report without its payload.
type Waiting struct {
	ID   uint64
	Kind wire.ReportKind
	Key  string
}

// OutboxIndex is Outbox without the payloads, for the reports with a key
// (statuses) or for those without (events).
func (s *Store) OutboxIndex(ctx context.Context, keyed bool, afterID uint64, limit int) ([]Waiting, error) {
	var waiting []Waiting
	err := s.read(ctx).Model(&outboxRow{}).Select("id", "kind", "key").
		Where("id > ? AND (key <> '') = ?", afterID, keyed).Order("id").Limit(limit).Find(&waiting).Error
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", s.explain(err))
	}
	return waiting, nil
}

// OutboxReport returns one unsettled report, or ErrNotFound when it was settled,
// replaced or dropped.
func (s *Store) OutboxReport(ctx context.Context, id uint64) (*wire.Report, error) {
	var rows []outboxRow
	if err := s.read(ctx).Where("id = ?", id).Limit(1).Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("read report %d: %w", id, s.explain(err))
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("report %d: %w", id, ErrNotFound)
	}
	return reportOf(rows[0]), nil
}

func reportOf(r outboxRow) *wire.Report {
	return &wire.Report{Id: r.ID, Kind: wire.ReportKind(r.Kind), Payload: r.Payload}
}

// Settle forgets reports that the hub accepted or refused for good. A report that
// replaced one of them meanwhile has another id and stays.
func (s *Store) Settle(ctx context.Context, ids ...uint64) error {
	err := s.write(ctx, func(tx *gorm.DB) error {
		return tx.Where("id IN ?", ids).Delete(&outboxRow{}).Error
	})
	if err != nil {
		return fmt.Errorf("settle reports %d: %w", ids, err)
	}
	return nil
}

// Counts is what the store holds, for people.
type Counts struct {
	Objects, Outbox int64
	EventsDropped   uint64 // since the database was made
	Bytes           int64  // of the database file and its log
}

// Counts counts.
func (s *Store) Counts(ctx context.Context) (Counts, error) {
	c := Counts{EventsDropped: s.dropped.Load(), Bytes: sizeOf(s.path) + sizeOf(s.path+"-wal")}
	err := errors.Join(
		s.read(ctx).Model(&objectRow{}).Count(&c.Objects).Error,
		s.read(ctx).Model(&outboxRow{}).Count(&c.Outbox).Error)
	if err != nil {
		return c, fmt.Errorf("count the store's rows: %w", s.explain(err))
	}
	return c, nil
}

// Pending says whether a report of that kind and key waits for the hub.
func (s *Store) Pending(ctx context.Context, kind wire.ReportKind, key string) (bool, error) {
	var n int64
	err := s.read(ctx).Model(&outboxRow{}).Where("kind = ? AND key = ?", int32(kind), key).Limit(1).Count(&n).Error
	if err != nil {
		return false, fmt.Errorf("read the outbox: %w", s.explain(err))
	}
	return n > 0, nil
}

// OutboxLen is how many reports wait for the hub.
func (s *Store) OutboxLen(ctx context.Context) (int, error) {
	var n int64
	if err := s.read(ctx).Model(&outboxRow{}).Count(&n).Error; err != nil {
		return 0, fmt.Errorf("count the outbox: %w", s.explain(err))
	}
	return int(n), nil
}
