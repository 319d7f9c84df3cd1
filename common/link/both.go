package link

import (
	"context"
	"errors"
	"sync"
)

// both hands on what several acceptors take.
type both struct {
	acceptors []Acceptor
	conns     chan Conn
	ended     chan error
	ctx       context.Context
	cancel    context.CancelFunc
	pumps     sync.WaitGroup
}

// AcceptBoth joins acceptors into one, which closes them with itself.
func AcceptBoth(acceptors ...Acceptor) Acceptor {
	b := &both{acceptors: acceptors, conns: make(chan Conn), ended: make(chan error, len(acceptors))}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	for _, a := range acceptors {
		b.pumps.Go(func() { b.ended <- b.pump(a) })
	}
	return b
}

func (b *both) pump(a Acceptor) error {
	for {
		c, err := a.Accept(b.ctx)
		if err != nil {
			return err
		}
		select {
		case b.conns <- c:
		case <-b.ctx.Done():
			return c.Close()
		}
	}
}

// Accept fails when one of the acceptors does.
func (b *both) Accept(ctx context.Context) (Conn, error) {
	if b.ctx.Err() != nil {
		return nil, ErrClosed
	}
	select {
	case c := <-b.conns:
		return c, nil
	case err := <-b.ended:
		b.ended <- err // for the next one
		if b.ctx.Err() != nil {
			return nil, ErrClosed
		}
		return nil, err
	case <-b.ctx.Done():
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *both) Close() error {
	b.cancel()
	var errs []error
	for _, a := range b.acceptors {
		errs = append(errs, a.Close())
	}
	b.pumps.Wait()
	return errors.Join(errs...)
}
