package link

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// rota is in which order an edge tries its hubs.
type rota struct {
	hubs      []string
	headStart time.Duration

	mu   sync.Mutex
	good string // the last one that took the edge; guarded by mu
}

// order begins with the last good one.
func (r *rota) order() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	hubs := make([]string, 0, len(r.hubs)+1)
	if r.good != "" {
		hubs = append(hubs, r.good)
	}
	for _, hub := range r.hubs {
		if hub != r.good {
			hubs = append(hubs, hub)
		}
	}
	return hubs
}

// attempt is what came of one hub.
type attempt struct {
	n    int
	conn Conn
	err  error
}

// dial tries the hubs in their order. The next one begins when one has failed, or
// a head start after the last one began; those under way go on, and the first
// connection that stands wins. Its error says what came of each.
func (r *rota) dial(ctx context.Context, try func(ctx context.Context, hub string) (Conn, error)) (Conn, error) {
	hubs := r.order()
	if len(hubs) == 0 {
		return nil, errors.New("no address of a hub is known: set \"hub\" in the config file")
	}
	trying, stop := context.WithCancel(ctx)
	defer stop()
	results := make(chan attempt, len(hubs))
	begun, ended := 0, 0
	failed := make([]error, len(hubs))
	next := time.NewTimer(0)
	defer next.Stop()
	for ended < len(hubs) {
		select {
		case <-next.C:
			if begun == len(hubs) || begun > 0 && ctx.Err() != nil {
				continue
			}
			n := begun
			begun++
			go func() {
				c, err := try(trying, hubs[n])
				results <- attempt{n, c, err}
			}()
			next.Reset(r.headStart)
		case a := <-results:
			ended++
			if a.err == nil {
				stop()
				go closeAll(results, begun-ended)
				r.mu.Lock()
				r.good = hubs[a.n]
				r.mu.Unlock()
				return a.conn, nil
			}
			failed[a.n] = fmt.Errorf("hub %s: %w", hubs[a.n], a.err)
			if ctx.Err() != nil && ended == begun {
				return nil, fmt.Errorf("hub %s: %w", hubs[a.n], ctx.Err())
			}
			next.Reset(0)
		}
	}
	return nil, join(failed)
}

// closeAll closes what the losers still brought about.
func closeAll(results <-chan attempt, n int) {
	for range n {
		if a := <-results; a.err == nil {
			_ = a.conn.Close()
		}
	}
}

// join is ErrRefused only when every hub refused: another one may be back soon.
func join(failed []error) error {
	refused := 0
	for _, err := range failed {
		if errors.Is(err, ErrRefused) {
			refused++
		}
	}
	var all error
	for _, err := range failed {
		if refused < len(failed) && errors.Is(err, ErrRefused) {
			if expired := errors.Is(err, ErrExpired); expired {
				err = fmt.Errorf("%w: %v", ErrExpired, err)
			} else {
				err = errors.New(err.Error())
			}
		}
		if all != nil {
			err = fmt.Errorf("%w; %w", all, err)
		}
		all = err
	}
	return all
}
