package store

import (
	"context"
	"fmt"

	"gorm.io/gorm"
)

// maxBatch is how many writes share one commit at most.
const maxBatch = 64

// writeRequest is one write that waits for its commit.
type writeRequest struct {
	ctx  context.Context
	fn   func(tx *gorm.DB) error // may be run again after a rollback
	done chan<- error            // room for one
}

// write runs fn in a transaction which is on the disk when write returns nil, and
// which never was when it returns an error. Writes that wait at the same time
// share one commit, because on an SD card a commit is what takes long.
func (s *Store) write(ctx context.Context, fn func(tx *gorm.DB) error) error {
	done := make(chan error, 1)
	select {
	case s.writes <- writeRequest{ctx, fn, done}:
	case <-s.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select { // not for ctx: once it is on its way, only the writer knows how it ends
	case err := <-done:
		return s.explain(err)
	case <-s.stopped:
		select {
		case err := <-done:
			return s.explain(err)
		default:
			return ErrClosed
		}
	}
}

// writer makes all commits, from Open to Close.
func (s *Store) writer() {
	defer close(s.stopped)
	for {
		var batch []writeRequest
		select {
		case w := <-s.writes:
			batch = append(batch, w)
		case <-s.closed:
			return
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case w := <-s.writes:
				batch = append(batch, w)
			default:
				more = false
			}
		}
		s.commit(batch)
	}
}

// commit commits the batch as one; when any of it fails, each by itself, so that
// nobody pays for another's failure.
func (s *Store) commit(batch []writeRequest) {
	if len(batch) > 1 {
		err := s.db.Transaction(func(tx *gorm.DB) error {
			for _, w := range batch {
				if err := run(tx, w); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			for _, w := range batch {
				w.done <- nil
			}
			return
		}
	}
	for _, w := range batch {
		w.done <- s.db.Transaction(func(tx *gorm.DB) error { return run(tx, w) })
	}
}

// run does one write inside tx. A panic in it is the writer's own bug, but must
// not leave the transaction open.
func run(tx *gorm.DB, w writeRequest) (err error) {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("write panicked: %v", p)
		}
	}()
	return w.fn(tx)
}
