package route

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Pattern is where a Door is, for an http.ServeMux.
const Pattern = "POST /v1/routes/{namespace}/{name}/{node}"

// Limits of the Door.
const (
	// MaxBody is the largest message that may be published at a node, in bytes.
	MaxBody = 256 << 10
	// publishTimeout is how long a node's answer is waited for.
	publishTimeout = 15 * time.Second
	reviewTimeout  = 10 * time.Second
	maxReviews     = 16 // at a time: anybody may ask
	maxToken       = 16 << 10
	// allowedFor is how long what the apiserver has allowed is not asked again.
	allowedFor = 10 * time.Second
	maxAllowed = 1024
	retryAfter = "5" // seconds
)

// Publisher is what the Door asks of cloud/hub.
type Publisher interface {
	Publish(ctx context.Context, node string, p *wire.Publish) (*wire.Published, error)
}

// Door is where the cluster's programs publish at nodes. It is an http.Handler
// for Pattern.
type Door struct {
	Options
	publisher Publisher
	reviews   chan struct{}

	accepted, refused, failed atomic.Uint64

	mu      sync.Mutex
	allowed map[[sha256.Size]byte]time.Time // until when, by token and route
}

// NewDoor returns a Door.
func NewDoor(o Options, p Publisher) *Door {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Door{Options: o, publisher: p, reviews: make(chan struct{}, maxReviews), allowed: make(map[[sha256.Size]byte]time.Time)}
}

// refusal is an answer other than 202.
type refusal struct {
	code    int
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// ServeHTTP publishes the body at the node. 202 says that its broker has it.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := d.serve(w, r)
	if err == nil {
		d.accepted.Add(1)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	var no *refusal
	if !errors.As(err, &no) {
		no = &refusal{http.StatusServiceUnavailable, err.Error()}
	}
	switch no.code {
	case http.StatusServiceUnavailable:
		d.failed.Add(1)
		w.Header().Set("Retry-After", retryAfter)
	case http.StatusUnauthorized:
		d.refused.Add(1)
		w.Header().Set("WWW-Authenticate", "Bearer")
	default:
		d.refused.Add(1)
	}
	http.Error(w, no.message, no.code)
}

func (d *Door) serve(w http.ResponseWriter, r *http.Request) error {
	namespace, name, node := r.PathValue("namespace"), r.PathValue("name"), r.PathValue("node")
	if err := d.authorize(r, namespace, name); err != nil {
		return err
	}
	route, err := d.route(r.Context(), namespace, name)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return refuse(http.StatusRequestEntityTooLarge, "a message has at most %d bytes", MaxBody)
	case err != nil:
		return refuse(http.StatusBadRequest, "read the message: %v", err)
	}
	n := d.Known.Node(node)
	switch {
	case n == nil && (route.Spec.NodeName == "" || route.Spec.NodeName == node):
		return fmt.Errorf("node %s is not connected to this hub", node)
	case !roster.Selected(&route.Spec, node, labelsOf(n)):
		return refuse(http.StatusNotFound, "route %s/%s is not one of node %s (spec.nodeName, spec.nodeSelector)", namespace, name, node)
	}
	ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
	defer cancel()
	answer, err := d.publisher.Publish(ctx, node, &wire.Publish{RouteUid: string(route.UID), Topic: route.Spec.Down.Topic, Payload: body})
	switch {
	case err != nil:
		return err
	case answer.GetCode() == wire.ResultCode_RESULT_ACCEPTED:
		return nil
	case answer.GetCode() == wire.ResultCode_RESULT_REJECTED:
		return refuse(http.StatusUnprocessableEntity, "node %s refuses the message: %s", node, answer.GetMessage())
	}
	return fmt.Errorf("node %s cannot take the message now: %s", node, answer.GetMessage())
}

// route finds a route that leads to nodes.
func (d *Door) route(ctx context.Context, namespace, name string) (*v1beta1.Route, error) {
	r := d.Known.Route(namespace, name)
	if r == nil {
		ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
		defer cancel()
		var err error
		if r, err = d.Client.Route(ctx, namespace, name); apierrors.IsNotFound(err) {
			return nil, refuse(http.StatusNotFound, "there is no route %s/%s", namespace, name)
		} else if err != nil {
			return nil, fmt.Errorf("read route %s/%s: %w", namespace, name, err)
		}
	}
	if r.Spec.Down == nil {
		return nil, refuse(http.StatusNotFound, "route %s/%s leads to no node (spec.down)", namespace, name)
	}
	return r, nil
}

// authorize asks the apiserver who it is, and whether he may create messages of the
// route.
func (d *Door) authorize(r *http.Request, namespace, name string) error {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > maxToken {
		return refuse(http.StatusUnauthorized, "a Kubernetes bearer token is needed: Authorization: Bearer TOKEN")
	}
	key := sha256.Sum256([]byte(namespace + "/" + name + "/" + token))
	d.mu.Lock()
	until, known := d.allowed[key]
	d.mu.Unlock()
	if known && d.Now().Before(until) {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), reviewTimeout)
	defer cancel()
	select {
	case d.reviews <- struct{}{}:
		defer func() { <-d.reviews }()
	case <-ctx.Done():
		return errors.New("too many requests at a time")
	}
	if err := d.review(ctx, token, namespace, name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.allowed) >= maxAllowed {
		clear(d.allowed)
	}
	d.allowed[key] = d.Now().Add(allowedFor)
	return nil
}

func (d *Door) review(ctx context.Context, token, namespace, name string) error {
	who, err := d.Cluster.AuthenticationV1().TokenReviews().Create(ctx,
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("the token cannot be checked now: %w", err)
	}
	if !who.Status.Authenticated {
		return refuse(http.StatusUnauthorized, "the cluster does not know this token")
	}
	user := who.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	may, err := d.Cluster.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Name: name, Verb: "create", Group: v1beta1.GroupName, Version: v1beta1.GroupVersion().Version, Resource: crd.Routes, Subresource: "messages",
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("the rights of %s cannot be checked now: %w", user.Username, err)
	}
	if !may.Status.Allowed {
		return refuse(http.StatusForbidden, "%s may not create routes/messages of %s in namespace %s: %s", user.Username, v1beta1.GroupName, namespace,
			strings.TrimSpace(may.Status.Reason))
	}
	return nil
}
