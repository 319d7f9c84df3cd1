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
	// replaces the earlier one. Reports without a key are all kept in their order,
	// up to Options.MaxEvents.
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
		if r.Key != "" {
			if err := tx.Where("kind = ? AND key = ?", int32(r.Kind), r.Key).Delete(&outboxRow{}).Error; err != nil {
				return err
			}
		}
		if err := tx.Create(&outboxRow{Kind: int32(r.Kind), Key: r.Key, Payload: r.Payload}).Error; err != nil {
			return err
		}
		if r.Key != "" {
			return nil
		}
		oldest := tx.Model(&outboxRow{}).Select("id").Where("key = ''").Order("id DESC").Offset(s.opts.MaxEvents).Limit(-1)
		res := tx.Where("id IN (?)", oldest).Delete(&outboxRow{})
		if res.Error != nil || res.RowsAffected == 0 {
			return res.Error
		}
		dropped = res.RowsAffected
		return putMeta(tx, metaEventsDropped, []byte(strconv.FormatUint(s.dropped.Load()+uint64(dropped), 10)))
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
	waiting, err := s.outbox(ctx, s.read(ctx).Where("id > ?", afterID), limit)
	reports := make([]*wire.Report, len(waiting))
	for i, w := range waiting {
		reports[i] = w.Report
	}
	return reports, err
}

// Waiting is an unsettled report and what it is about.
type Waiting struct {
	*wire.Report
	Key string
}

// OutboxKeyed is Outbox for the reports with a key (statuses), OutboxOrdered for
// those without (events).
func (s *Store) OutboxKeyed(ctx context.Context, afterID uint64, limit int) ([]Waiting, error) {
	return s.outbox(ctx, s.read(ctx).Where("id > ? AND key <> ''", afterID), limit)
}

// OutboxOrdered: see OutboxKeyed.
func (s *Store) OutboxOrdered(ctx context.Context, afterID uint64, limit int) ([]Waiting, error) {
	return s.outbox(ctx, s.read(ctx).Where("id > ? AND key = ''", afterID), limit)
}

func (s *Store) outbox(_ context.Context, query *gorm.DB, limit int) ([]Waiting, error) {
	var rows []outboxRow
	if err := query.Order("id").Limit(limit).Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("read the outbox: %w", s.explain(err))
	}
	out := make([]Waiting, len(rows))
	for i, r := range rows {
		out[i] = Waiting{Report: &wire.Report{Id: r.ID, Kind: wire.ReportKind(r.Kind), Payload: r.Payload}, Key: r.Key}
	}
	return out, nil
}

// Settle forgets a report that the hub accepted or refused for good. A report
// that replaced it meanwhile has another id and stays.
func (s *Store) Settle(ctx context.Context, id uint64) error {
	err := s.write(ctx, func(tx *gorm.DB) error {
		return tx.Where("id = ?", id).Delete(&outboxRow{}).Error
	})
	if err != nil {
		return fmt.Errorf("settle report %d: %w", id, err)
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
