package route

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/holdfast-edge/holdfast/cloud/access"
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
	readTimeout    = 10 * time.Second
)

// Publisher is what the Door asks of cloud/hub.
type Publisher interface {
	Publish(ctx context.Context, node string, p *wire.Publish) (*wire.Published, error)
}

// Access is what the Door asks of cloud/access.
type Access interface {
	Authenticate(ctx context.Context, r *http.Request) (*authenticationv1.UserInfo, error)
	Authorize(ctx context.Context, user *authenticationv1.UserInfo, anyOf ...authorizationv1.ResourceAttributes) error
}

// Door is where the cluster's programs publish at nodes. It is an http.Handler
// for Pattern.
type Door struct {
	Options
	publisher Publisher
	access    Access

	accepted, refused, failed atomic.Uint64
}

// NewDoor returns a Door.
func NewDoor(o Options, p Publisher, a Access) *Door {
	return &Door{Options: o, publisher: p, access: a}
}

func refuse(code int, format string, args ...any) error {
	return &access.Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// ServeHTTP publishes the body at the node. 202 says that its broker has it.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := d.serve(w, r)
	if err == nil {
		d.accepted.Add(1)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	var no *access.Refusal
	if errors.As(err, &no) {
		d.refused.Add(1)
	} else {
		d.failed.Add(1)
	}
	access.Answer(w, err)
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
		ctx, cancel := context.WithTimeout(ctx, readTimeout)
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

// authorize says whether the request's sender may create messages of the route.
func (d *Door) authorize(r *http.Request, namespace, name string) error {
	user, err := d.access.Authenticate(r.Context(), r)
	if err != nil {
		return err
	}
	return d.access.Authorize(r.Context(), user, authorizationv1.ResourceAttributes{
		Namespace: namespace, Name: name, Verb: "create", Group: v1beta1.GroupName, Version: v1beta1.GroupVersion().Version, Resource: crd.Routes, Subresource: "messages",
	})
}
