package route

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// Errors; test with errors.Is.
var (
	// ErrNoRoute: the node holds no such Route.
	ErrNoRoute = errors.New("this node has no such route")
	// ErrEnded: edgecore is stopping; nothing was taken.
	ErrEnded = errors.New("edgecore is stopping")
	// ErrTooLarge: the message is larger than its route's whole buffer.
	ErrTooLarge = errors.New("the message is larger than the route's buffer")
)

// Clock is the node's.
type Clock interface{ Wall() time.Time }

// Options are what a Router needs.
type Options struct {
	Store *store.Store
	Clock Clock
	// Publish publishes on the node's broker with QoS 1; it returns when the broker has
	// the message.
	Publish func(ctx context.Context, topic string, payload []byte) error
	Log     *slog.Logger
}

// Router carries messages.
type Router struct {
	o       Options
	offers  chan offer
	filters chan struct{} // Filters may have changed
	ready   chan struct{} // the source may have something
	started chan struct{} // closed when the routes are read
	ended   chan struct{}

	mu     sync.Mutex
	routes map[string]*route // by uid
}

// route is one Route; guarded by Router.mu. Messages are added and dropped by Run
// alone.
type route struct {
	of      *v1beta1.Route
	refs    []ref // messages that wait, oldest first
	bytes   int
	dropped uint64 // ever
	told    uint64 // how many of them the hub knows of
	flying  uint64 // messages up to this number are in a report that is under way
	taken   bool
}

type ref struct {
	number uint64
	size   int
}

type offer struct {
	topic   string
	payload []byte
	at      int64
	done    func(error)
}

// Limits of one report.
const (
	reportMessages = 256
	reportBytes    = 256 << 10
	maxBatch       = 256 // offers that share a commit
)

// New returns a Router that does nothing until Run.
func New(o Options) *Router {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Router{o: o, offers: make(chan offer, maxBatch), filters: make(chan struct{}, 1), ready: make(chan struct{}, 1),
		started: make(chan struct{}), ended: make(chan struct{}), routes: make(map[string]*route)}
}

// Run follows the store and keeps messages until ctx ends. It is called once.
func (r *Router) Run(ctx context.Context) error {
	defer r.refuse()
	defer close(r.ended)
	changes, stop := r.o.Store.Subscribe(16)
	defer stop()
	if err := r.load(ctx); err != nil {
		return err
	}
	close(r.started)
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				return store.ErrClosed
			}
			if c.Kind == wire.Kind_KIND_ROUTE {
				r.follow(ctx, c)
			}
		case o := <-r.offers:
			r.keep(r.gather(o))
		case <-ctx.Done():
			return nil
		}
	}
}

// refuse answers what is queued when Run has ended.
func (r *Router) refuse() {
	for {
		select {
		case o := <-r.offers:
			o.done(ErrEnded)
		default:
			return
		}
	}
}

func (r *Router) gather(first offer) []offer {
	batch := []offer{first}
	for len(batch) < maxBatch {
		select {
		case o := <-r.offers:
			batch = append(batch, o)
		default:
			return batch
		}
	}
	return batch
}

// load reads routes and the messages that wait, before anything else happens.
func (r *Router) load(ctx context.Context) error {
	routes := make(map[string]*route)
	err := r.o.Store.Payloads(ctx, wire.Kind_KIND_ROUTE, func(of *wire.ObjectRef, payload []byte) {
		parsed := new(v1beta1.Route)
		if err := json.Unmarshal(payload, parsed); err != nil {
			r.o.Log.Error("a stored route cannot be read and is left alone", "object", wire.Describe(of), "err", err)
			return
		}
		routes[of.GetUid()] = &route{of: parsed}
	})
	if err != nil {
		return err
	}
	dropped, err := r.o.Store.RoutesDropped(ctx)
	if err != nil {
		return err
	}
	orphans := make(map[string]bool) // of routes that were deleted a moment before the end
	for uid, n := range dropped {
		if at := routes[uid]; at != nil {
			at.dropped = n
		} else {
			orphans[uid] = true
		}
	}
	err = r.o.Store.MessageIndex(ctx, func(number uint64, uid string, size int) {
		if at := routes[uid]; at != nil {
			at.refs, at.bytes = append(at.refs, ref{number, size}), at.bytes+size
		} else {
			orphans[uid] = true
		}
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.routes = routes
	r.mu.Unlock()
	signal(r.filters)
	signal(r.ready)
	if len(orphans) == 0 {
		return nil
	}
	if err := r.o.Store.PutMessages(ctx, &store.MessageBatch{Forget: slices.Collect(maps.Keys(orphans))}); err != nil && ctx.Err() == nil {
		r.o.Log.Warn("messages of routes that are gone stay in the database until the next start", "routes", len(orphans), "err", err)
	}
	return nil
}

func (r *Router) put(uid string, of *v1beta1.Route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at := r.routes[uid]; at != nil {
		at.of = of
	} else {
		r.routes[uid] = &route{of: of}
	}
	signal(r.filters)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// follow takes the cloud's word about a route.
func (r *Router) follow(ctx context.Context, c store.Change) {
	if !c.Deleted {
		of := new(v1beta1.Route)
		err := r.o.Store.Decode(ctx, c.Kind, c.UID, of)
		switch {
		case err == nil:
			r.put(c.UID, of)
		case !errors.Is(err, store.ErrNotFound):
			r.o.Log.Error("what the cloud says of a route cannot be read; it stays as it was", "route", c.Namespace+"/"+c.Name, "err", err)
		}
		return
	}
	r.mu.Lock()
	delete(r.routes, c.UID)
	r.mu.Unlock()
	signal(r.filters)
	if err := r.o.Store.PutMessages(ctx, &store.MessageBatch{Forget: []string{c.UID}}); err != nil && ctx.Err() == nil {
		r.o.Log.Warn("messages of a route that is gone stay in the database until the next start", "route", c.Namespace+"/"+c.Name, "err", err)
	}
}

// Filters are the topic filters that routes want, each once and in order.
func (r *Router) Filters() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, at := range r.routes {
		if up := at.of.Spec.Up; up != nil && up.Topic != "" && !strings.HasPrefix(up.Topic, "$") {
			all = append(all, up.Topic)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Len is how many routes the node holds.
func (r *Router) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.routes)
}

// Started is closed when the routes have been read: until then no topic is wanted.
func (r *Router) Started() <-chan struct{} { return r.started }

// Changed is signalled (capacity 1) when Filters may have changed. It serves one
// reader, edge/mqtt.
func (r *Router) Changed() <-chan struct{} { return r.filters }

// Offer takes a message that was published at the node if a route wants it. done is
// called when it is durable, or with an error when it was not taken; it must not
// block. Offer itself blocks while too many wait.
func (r *Router) Offer(ctx context.Context, topic string, payload []byte, done func(error)) (wanted bool) {
	if done == nil {
		done = func(error) {}
	}
	r.mu.Lock()
	for _, at := range r.routes {
		wanted = wanted || at.wants(topic)
	}
	r.mu.Unlock()
	if !wanted {
		return false
	}
	o := offer{topic: topic, payload: payload, at: r.o.Clock.Wall().UnixMilli(), done: done}
	select {
	case r.offers <- o:
		select {
		case <-r.ended: // perhaps after Run had answered the last
			r.refuse()
		default:
		}
	case <-r.ended:
		done(ErrEnded)
	case <-ctx.Done():
		done(context.Cause(ctx))
	}
	return true
}

func (at *route) wants(topic string) bool {
	return at.of.Spec.Up != nil && Match(at.of.Spec.Up.Topic, topic)
}

func (at *route) bounds() (messages, bytes int) {
	messages, bytes = v1beta1.DefaultRouteMessages, v1beta1.DefaultRouteKiB<<10
	if b := at.of.Spec.Up.Buffer; b.Messages > 0 {
		messages = int(b.Messages)
	}
	if b := at.of.Spec.Up.Buffer; b.KiB > 0 {
		bytes = int(b.KiB) << 10
	}
	return messages, bytes
}

// kept is what a batch does to one route.
type kept struct {
	waiting      []ref // that may be dropped
	drop         int   // of waiting, from its head
	add          []*store.Message
	count, total int // messages and bytes that wait once the batch is in force
	lost         uint64
}

func (at *route) begin() *kept {
	k := &kept{waiting: at.grounded()}
	k.count = len(k.waiting)
	for _, f := range k.waiting {
		k.total += f.size
	}
	return k
}

// keep commits a batch of offers, each to every route that wants it.
func (r *Router) keep(batch []offer) {
	r.mu.Lock()
	work := make(map[*route]*kept)
	tx := &store.MessageBatch{Dropped: make(map[string]uint64)}
	stays := make(map[*store.Message]bool)
	results := make([]error, len(batch))
	for i, o := range batch {
		for uid, at := range r.routes {
			if !at.wants(o.topic) {
				continue
			}
			k := work[at]
			if k == nil {
				k = at.begin()
				work[at] = k
			}
			if err := at.fit(k, len(o.topic)+len(o.payload)); err != nil {
				results[i] = fmt.Errorf("route %s/%s: %w", at.of.Namespace, at.of.Name, err)
				continue
			}
			k.count, k.total = k.count+1, k.total+len(o.topic)+len(o.payload)
			m := &store.Message{Route: uid, Topic: o.topic, Payload: o.payload, At: o.at}
			k.add, tx.Add = append(k.add, m), append(tx.Add, m)
		}
	}
	for at, k := range work {
		for _, m := range k.add {
			stays[m] = true
		}
		for _, f := range k.waiting[:k.drop] {
			tx.Drop = append(tx.Drop, f.number)
		}
		if k.lost > 0 {
			tx.Dropped[string(at.of.UID)] = at.dropped + k.lost
		}
	}
	r.mu.Unlock()
	tx.Add = slices.DeleteFunc(tx.Add, func(m *store.Message) bool { return !stays[m] }) // numbers grow as they came

	err := r.o.Store.PutMessages(context.Background(), tx)
	if err == nil {
		r.force(work)
	} else if !errors.Is(err, store.ErrClosed) {
		r.o.Log.Error("routed messages cannot be stored; who published them is told so", "messages", len(batch), "err", err)
	}
	for i, o := range batch {
		o.done(cmp.Or(err, results[i]))
	}
}

// fit makes room for a message, by dropping the oldest.
func (at *route) fit(k *kept, size int) error {
	messages, bytes := at.bounds()
	if size > bytes {
		return ErrTooLarge
	}
	for k.count+1 > messages || k.total+size > bytes {
		if k.drop < len(k.waiting) {
			k.total -= k.waiting[k.drop].size
			k.drop++
		} else {
			k.total -= len(k.add[0].Topic) + len(k.add[0].Payload)
			k.add = k.add[1:]
		}
		k.count--
		k.lost++
	}
	return nil
}

// grounded are the messages that are in no report.
func (at *route) grounded() []ref {
	n := 0
	for n < len(at.refs) && at.refs[n].number <= at.flying {
		n++
	}
	return at.refs[n:]
}

// force puts a committed batch in force.
func (r *Router) force(work map[*route]*kept) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at, k := range work {
		for _, f := range k.waiting[:k.drop] { // settled meanwhile, some may be gone
			if i, found := slices.BinarySearchFunc(at.refs, f.number, func(r ref, n uint64) int { return cmp.Compare(r.number, n) }); found {
				at.bytes -= f.size
				at.refs = slices.Concat(at.refs[:i], at.refs[i+1:])
			}
		}
		for _, m := range k.add {
			size := len(m.Topic) + len(m.Payload)
			at.refs, at.bytes = append(at.refs, ref{m.Number, size}), at.bytes+size
		}
		at.dropped += k.lost
	}
	signal(r.ready)
}

// PublishDown publishes what the cloud sends, if a route allows it.
func (r *Router) PublishDown(ctx context.Context, p *wire.Publish) error {
	r.mu.Lock()
	at := r.routes[p.GetRouteUid()]
	r.mu.Unlock()
	if at == nil || at.of.Spec.Down == nil || at.of.Spec.Down.Topic != p.GetTopic() {
		return fmt.Errorf("topic %q by the route with uid %s: %w", p.GetTopic(), p.GetRouteUid(), ErrNoRoute)
	}
	if r.o.Publish == nil {
		return errors.New("this node serves no MQTT")
	}
	return r.o.Publish(ctx, p.GetTopic(), p.GetPayload())
}

// WriteMetrics writes the room's metrics (docs/metrics.md).
func (r *Router) WriteMetrics(w io.Writer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.routes) == 0 {
		return
	}
	messages, bytes, dropped := 0, 0, uint64(0)
	for _, at := range r.routes {
		messages, bytes, dropped = messages+len(at.refs), bytes+at.bytes, dropped+at.dropped
	}
	fmt.Fprintf(w, "holdfast_edge_route_messages %d\n", messages)
	fmt.Fprintf(w, "holdfast_edge_route_bytes %d\n", bytes)
	fmt.Fprintf(w, "holdfast_edge_route_dropped %d\n", dropped)
}
