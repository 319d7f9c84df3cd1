package route

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Known is what this package asks of cloud/watch.
type Known interface {
	// Route returns a route as it is known last, or nil.
	Route(namespace, name string) *v1beta1.Route
	// Node returns the Node of a connected node, or nil.
	Node(name string) *corev1.Node
}

// Reports is what it asks of cloud/report.
type Reports interface {
	Carry(ctx context.Context, node string, id uint64, f func(context.Context) error) (*wire.ReportResult, error)
}

// Options are what a Carrier and a Door need.
type Options struct {
	Client  *crd.Client          // cloudcore's own identity
	Cluster kubernetes.Interface // the same
	AsNode  kubernetes.Interface // acts as the node of the context (cloud/asnode)
	Known   Known
	Reports Reports
	Version string // of cloudcore
	// Transport reaches endpoints; nil: http.DefaultTransport's settings.
	Transport http.RoundTripper
	// Now is the hub's clock; nil means time.Now.
	Now func() time.Time
}

// Limits of what is posted.
const (
	postTimeout  = 10 * time.Second // one message
	batchTimeout = time.Minute      // all messages of one report
	maxPosts     = 64               // at a time
	maxPostsOne  = 16               // of these, of one route: a dead endpoint delays no other
	maxAnswer    = 64 << 10         // bytes of an answer that are read, so that the connection can be used again
	maxProgress  = 4096             // reports of which a part was delivered
	maxEventText = 1024
	// Events of one node: a topic that says much must not fill the cluster's store,
	// which keeps each for an hour.
	eventsPerSecond, eventsAtOnce = 5, 100
)

// Carrier brings messages of nodes to where their routes lead.
type Carrier struct {
	Options
	http  *http.Client
	posts chan struct{}

	delivered, refused, failed atomic.Uint64

	mu       sync.Mutex
	posting  map[string]int                     // by route's uid
	progress map[string]uint64                  // number of the last message delivered, by node, database and route, while a report is not done
	makers   map[string]flowcontrol.RateLimiter // of Events, by node
}

// NewCarrier returns a Carrier.
func NewCarrier(o Options) *Carrier {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost, t.ResponseHeaderTimeout = maxPostsOne, postTimeout
		o.Transport = t
	}
	return &Carrier{Options: o, posts: make(chan struct{}, maxPosts), posting: make(map[string]int), progress: make(map[string]uint64), makers: make(map[string]flowcontrol.RateLimiter),
		http: &http.Client{Transport: o.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// Write delivers the messages of one report in their order; see
// report.Writer.Write for what it returns. When it fails on the way, those that
// were delivered are not delivered again by this hub.
func (c *Carrier) Write(ctx context.Context, node, store string, _ report.Epoch, r *wire.Report) (*wire.ReportResult, error) {
	m := new(wire.RoutedMessages)
	if err := wire.DecodePayload(r.GetPayload(), m); err != nil {
		return report.Answer(r.GetId(), fmt.Errorf("decode messages of a route: %w: %w", err, report.ErrRejected)), nil
	}
	if m.GetRouteNamespace() == "" || m.GetRouteName() == "" || m.GetRouteUid() == "" {
		return report.Answer(r.GetId(), fmt.Errorf("messages of route %q/%q with uid %q: %w: namespace, name and uid are needed",
			m.GetRouteNamespace(), m.GetRouteName(), m.GetRouteUid(), report.ErrRejected)), nil
	}
	route, err := c.route(ctx, node, m)
	if err != nil {
		return report.Answer(r.GetId(), err), nil
	}
	b := &batch{carrier: c, node: node, store: wire.Lineage(store, m.GetLineage()), route: route, messages: m}
	if route.Spec.Up.Event != nil {
		result, err := c.Reports.Carry(ctx, node, r.GetId(), b.events)
		if err != nil || result.GetCode() == wire.ResultCode_RESULT_RETRY {
			c.failed.Add(1)
			return result, err
		}
	} else if err := b.post(ctx); err != nil {
		c.failed.Add(1)
		return report.Answer(r.GetId(), err), nil
	}
	result, err := c.Reports.Carry(ctx, node, r.GetId(), b.count)
	if err == nil && result.GetCode() != wire.ResultCode_RESULT_RETRY {
		b.done()
	}
	return result, err
}

// route finds the route of a report: one that is known, or else one that is there.
func (c *Carrier) route(ctx context.Context, node string, m *wire.RoutedMessages) (*v1beta1.Route, error) {
	what := fmt.Sprintf("route %s/%s (uid %s)", m.GetRouteNamespace(), m.GetRouteName(), m.GetRouteUid())
	r := c.Known.Route(m.GetRouteNamespace(), m.GetRouteName())
	if r == nil || string(r.UID) != m.GetRouteUid() {
		ctx, cancel := context.WithTimeout(ctx, postTimeout)
		defer cancel()
		var err error
		if r, err = c.Client.Route(ctx, m.GetRouteNamespace(), m.GetRouteName()); apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%s is gone: %w", what, report.ErrNothingLeft)
		} else if err != nil {
			return nil, fmt.Errorf("read %s: %w: %w", what, report.ErrNotYet, err)
		}
	}
	n := c.Known.Node(node)
	switch {
	case string(r.UID) != m.GetRouteUid():
		return nil, fmt.Errorf("%s is gone, another has its name: %w", what, report.ErrNothingLeft)
	case r.Spec.Up == nil || r.Spec.Up.HTTP == nil && r.Spec.Up.Event == nil:
		return nil, fmt.Errorf("%s carries nothing from nodes (spec.up): %w", what, report.ErrRejected)
	case n == nil && len(r.Spec.NodeSelector) > 0:
		return nil, fmt.Errorf("%s: the labels of node %s are not known yet: %w", what, node, report.ErrNotYet)
	case !roster.Selected(&r.Spec, node, labelsOf(n)):
		return nil, fmt.Errorf("%s is not one of node %s (spec.nodeName, spec.nodeSelector): %w", what, node, report.ErrRejected)
	}
	return r, nil
}

func labelsOf(n *corev1.Node) map[string]string {
	if n == nil {
		return nil
	}
	return n.Labels
}

// batch is the messages of one report.
type batch struct {
	carrier     *Carrier
	node, store string
	route       *v1beta1.Route
	messages    *wire.RoutedMessages
}

func (b *batch) key() string { return b.node + "/" + b.store + "/" + string(b.route.UID) }

// left are the messages that were not delivered yet.
func (b *batch) left() []*wire.RoutedMessage {
	b.carrier.mu.Lock()
	last := b.carrier.progress[b.key()]
	b.carrier.mu.Unlock()
	all := b.messages.GetMessages()
	for len(all) > 0 && all[0].GetNumber() <= last {
		all = all[1:]
	}
	return all
}

// reached notes that a message is delivered.
func (b *batch) reached(number uint64) {
	c := b.carrier
	c.delivered.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.progress) >= maxProgress {
		clear(c.progress) // then some come twice
	}
	c.progress[b.key()] = number
}

// done forgets the batch, which the node does not send again.
func (b *batch) done() {
	b.carrier.mu.Lock()
	defer b.carrier.mu.Unlock()
	delete(b.carrier.progress, b.key())
}

// id names a message for those who must not take it twice.
func (b *batch) id(m *wire.RoutedMessage) string {
	return fmt.Sprintf("%s/%s/%d", b.store, b.route.UID, m.GetNumber())
}

// enter takes a place among those who post.
func (c *Carrier) enter(ctx context.Context, uid string) (leave func(), err error) {
	c.mu.Lock()
	if c.posting[uid] >= maxPostsOne {
		c.mu.Unlock()
		return nil, fmt.Errorf("its endpoint has not answered %d posts yet: %w", maxPostsOne, report.ErrNotYet)
	}
	c.posting[uid]++
	c.mu.Unlock()
	fewer := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.posting[uid]--; c.posting[uid] == 0 {
			delete(c.posting, uid)
		}
	}
	select {
	case c.posts <- struct{}{}:
		return func() { <-c.posts; fewer() }, nil
	case <-ctx.Done():
		fewer()
		return nil, context.Cause(ctx)
	}
}

// post posts the messages, each after the answer to the one before.
func (b *batch) post(ctx context.Context) error {
	c, name := b.carrier, b.route.Namespace+"/"+b.route.Name
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	leave, err := c.enter(ctx, string(b.route.UID))
	if err != nil {
		return fmt.Errorf("post messages of route %s: %w", name, err)
	}
	defer leave()
	for _, m := range b.left() {
		switch err := b.postOne(ctx, m); {
		case errors.Is(err, report.ErrRejected):
			c.refused.Add(1)
		case err != nil:
			return fmt.Errorf("post a message of route %s: %w", name, err)
		}
		b.reached(m.GetNumber())
	}
	return nil
}

// postOne posts one message. Its error is ErrRejected when the endpoint will never
// take it.
func (b *batch) postOne(ctx context.Context, m *wire.RoutedMessage) error {
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.route.Spec.Up.HTTP.URL, bytes.NewReader(m.GetPayload()))
	if err != nil {
		return withoutURL(err)
	}
	r.Header.Set("Content-Type", "application/octet-stream")
	r.Header.Set("User-Agent", "cloudcore/"+b.carrier.Version)
	r.Header.Set("Holdfast-Node", b.node)
	r.Header.Set("Holdfast-Topic", headerSafe(m.GetTopic()))
	r.Header.Set("Holdfast-Route", b.route.Namespace+"/"+b.route.Name)
	r.Header.Set("Holdfast-Message-Id", headerSafe(b.id(m)))
	answer, err := b.carrier.http.Do(r)
	if err != nil {
		return withoutURL(err)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
	switch code := answer.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code == http.StatusBadRequest, code == http.StatusRequestEntityTooLarge, code == http.StatusUnprocessableEntity:
		return fmt.Errorf("the endpoint answers %s: %w", answer.Status, report.ErrRejected)
	case code >= 300 && code < 400:
		return fmt.Errorf("the endpoint answers %s, and redirects are not followed: write the address where it leads into spec.up.http.url", answer.Status)
	default:
		return fmt.Errorf("the endpoint answers %s", answer.Status)
	}
}

// withoutURL is an error that a node may hear: the URL may have a password in it.
func withoutURL(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}

// headerSafe writes what a header cannot hold as %XX, and % itself.
func headerSafe(s string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7f && c != '%' || c == ' ' }
	var out strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			out.WriteByte(s[i])
		} else {
			fmt.Fprintf(&out, "%%%02X", s[i])
		}
	}
	return out.String()
}

// mayMake says that a node may make one more Event now.
func (c *Carrier) mayMake(node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.makers[node]
	if of == nil {
		if len(c.makers) >= maxProgress {
			clear(c.makers)
		}
		of = flowcontrol.NewTokenBucketRateLimiter(eventsPerSecond, eventsAtOnce)
		c.makers[node] = of
	}
	return of.TryAccept()
}

// events makes Events of the messages, as the node. One that is there already is
// the same message.
func (b *batch) events(ctx context.Context) error {
	c, target := b.carrier, b.route.Spec.Up.Event
	for _, m := range b.left() {
		if !c.mayMake(b.node) {
			return fmt.Errorf("node %s has made %d Events and more than %d a second; the next ones wait: %w", b.node, eventsAtOnce, eventsPerSecond, report.ErrNotYet)
		}
		sum := sha256.Sum256([]byte(b.node + "/" + b.id(m)))
		text := strings.ToValidUTF8(m.GetTopic()+": "+string(m.GetPayload()), "?")
		if len(text) > maxEventText {
			text = strings.ToValidUTF8(text[:maxEventText-3], "") + "..."
		}
		now := metav1.NewTime(c.Now())
		e := &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: b.route.Namespace, Name: fmt.Sprintf("%.200s.%s", b.route.Name, hex.EncodeToString(sum[:10]))},
			InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Namespace: b.route.Namespace, Name: b.node, UID: types.UID(b.node)},
			Reason:         target.Reason, Message: text, Type: target.Type, Count: 1, FirstTimestamp: now, LastTimestamp: now,
			Source:              corev1.EventSource{Component: "holdfast-route", Host: b.node},
			ReportingController: "holdfast.io/route", ReportingInstance: b.node,
		}
		if e.Type == "" {
			e.Type = corev1.EventTypeNormal
		}
		_, err := c.AsNode.CoreV1().Events(e.Namespace).Create(asnode.With(ctx, b.node), e, metav1.CreateOptions{})
		switch {
		case err == nil, apierrors.IsAlreadyExists(err):
		case apierrors.IsInvalid(err):
			c.refused.Add(1)
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
			return fmt.Errorf("make an Event of route %s/%s: %w: %w", b.route.Namespace, b.route.Name, report.ErrNothingLeft, err)
		default:
			return fmt.Errorf("make an Event of route %s/%s: %w", b.route.Namespace, b.route.Name, err)
		}
		b.reached(m.GetNumber())
	}
	return nil
}

// count writes how many messages the node has dropped, if that is news. It only
// grows.
func (b *batch) count(ctx context.Context) error {
	dropped := int64(b.messages.GetDropped())
	if counted(&b.route.Status, b.node) >= dropped {
		return nil
	}
	r, err := b.carrier.Client.Route(ctx, b.route.Namespace, b.route.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read route %s/%s: %w", b.route.Namespace, b.route.Name, err)
	}
	if r.UID != b.route.UID || counted(&r.Status, b.node) >= dropped {
		return nil
	}
	i := slices.IndexFunc(r.Status.Nodes, func(n v1beta1.RouteNode) bool { return n.Node == b.node })
	if i < 0 {
		r.Status.Nodes = append(r.Status.Nodes, v1beta1.RouteNode{Node: b.node, Dropped: dropped})
	} else {
		r.Status.Nodes[i].Dropped = dropped
	}
	if _, err := b.carrier.Client.UpdateRouteStatus(ctx, r); err != nil {
		return fmt.Errorf("count what node %s dropped of route %s/%s: %w", b.node, r.Namespace, r.Name, err)
	}
	return nil
}

func counted(s *v1beta1.RouteStatus, node string) int64 {
	for _, n := range s.Nodes {
		if n.Node == node {
			return n.Dropped
		}
	}
	return 0
}
