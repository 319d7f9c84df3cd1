// Package asnode lets cloudcore speak to the apiserver in the name of an edge
// node, so that Kubernetes' Node authorizer and NodeRestriction decide what the
// node may read and write (keps/0003-acting-as-the-node.md). cloud/watch,
// cloud/report and cloud/hub use it. It decides nothing itself, and a request
// made with its client but without a node's name never leaves the process.
package asnode

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

// Group is the group of every node's user.
const Group = "system:nodes"

// ErrNoNode is returned for a request whose context names no node.
var ErrNoNode = errors.New("request in no node's name")

// User is the user name of a node.
func User(node string) string { return "system:node:" + node }

type key struct{}

// With returns a context whose requests are made as the node.
func With(ctx context.Context, node string) context.Context {
	return context.WithValue(ctx, key{}, node)
}

// NewClient returns a client for all nodes: each request is made as the node
// that its context names. One client, and one connection pool, serves
// thousands of nodes; a client for each would cost memory for each.
func NewClient(config *rest.Config) (kubernetes.Interface, error) {
	client, err := kubernetes.NewForConfig(Config(config))
	if err != nil {
		return nil, fmt.Errorf("make the client that acts as nodes: %w", err)
	}
	return client, nil
}

// Config is the config of such a client, for clients of another kind.
func Config(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	c.Impersonate = rest.ImpersonationConfig{}
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &impersonator{next} })
	return c
}

type impersonator struct{ next http.RoundTripper }

func (i *impersonator) RoundTrip(r *http.Request) (*http.Response, error) {
	node, _ := r.Context().Value(key{}).(string)
	if node == "" {
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, ErrNoNode)
	}
	r = r.Clone(r.Context())
	r.Header.Set(transport.ImpersonateUserHeader, User(node))
	r.Header.Set(transport.ImpersonateGroupHeader, Group)
	return i.next.RoundTrip(r)
}

// WrappedRoundTripper shows what lies below, as client-go asks of wrappers.
func (i *impersonator) WrappedRoundTripper() http.RoundTripper { return i.next }
