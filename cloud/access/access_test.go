package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// apiserver answers reviews without a network: what a real one says is tested in
// cloud/cmd/cloudcore.
type apiserver func(r *http.Request) string

func (a apiserver) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusCreated, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewBufferString(a(r))), Request: r,
	}, nil
}

const (
	allowed = `{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{"allowed":true}}`
	nobody  = `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":{"authenticated":false}}`
)

func accessTo(t *testing.T, a apiserver, o Options) *Access {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://apiserver.test", Transport: a, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	o.Client = client
	return New(o)
}

// TestOneWhoScrapesManyNodesIsReviewedOnceEach: what was allowed at thousands of nodes is
// remembered until it ends.
func TestOneWhoScrapesManyNodesIsReviewedOnceEach(t *testing.T) {
	var reviews atomic.Int64
	a := accessTo(t, func(*http.Request) string { reviews.Add(1); return allowed }, Options{AllowedFor: time.Hour})
	const nodes = 10000
	for range 2 {
		for i := range nodes {
			err := a.Authorize(t.Context(), &authenticationv1.UserInfo{Username: "metrics"},
				authorizationv1.ResourceAttributes{Verb: "get", Resource: "nodes", Subresource: "metrics", Name: fmt.Sprint("till-", i)})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := reviews.Load(); n != nodes {
		t.Errorf("%d reviews for two rounds of %d nodes", n, nodes)
	}
}

func TestDecisionsAreBounded(t *testing.T) {
	now := time.Now()
	a := New(Options{Client: kubernetes.New(nil), Now: func() time.Time { return now }})
	for i := range maxDecisions {
		a.remember([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}, decision{until: now.Add(time.Duration(i%2) * time.Minute)})
	}
	a.remember([32]byte{31: 1}, decision{until: now.Add(time.Minute)})
	if n := len(a.decisions); n != maxDecisions/2+1 {
		t.Errorf("%d decisions are remembered after half of %d have ended", n, maxDecisions)
	}
	for i := range maxDecisions {
		a.remember([32]byte{30: 1, 0: byte(i), 1: byte(i >> 8), 2: byte(i >> 16)}, decision{until: now.Add(time.Minute)})
		if n := len(a.decisions); n > maxDecisions {
			t.Fatalf("%d decisions are remembered", n)
		}
	}
}

// TestStrangersTokensKeepNobodyWaiting: whoever is known is reviewed while the
// apiserver is busy with tokens that anybody may show.
func TestStrangersTokensKeepNobodyWaiting(t *testing.T) {
	answer, asked := make(chan struct{}), make(chan struct{}, 2*maxReviews)
	a := accessTo(t, func(r *http.Request) string {
		if strings.Contains(r.URL.Path, "tokenreviews") {
			asked <- struct{}{}
			<-answer
			return nobody
		}
		return allowed
	}, Options{})
	done := make(chan error, maxReviews)
	for i := range maxReviews {
		go func() {
			r, err := http.NewRequest(http.MethodGet, "/", nil)
			if err == nil {
				r.Header.Set("Authorization", fmt.Sprint("Bearer guess-", i))
				_, err = a.Authenticate(t.Context(), r)
			}
			done <- err
		}()
		<-asked
	}
	if err := a.Authorize(t.Context(), &authenticationv1.UserInfo{Username: "anna"}, authorizationv1.ResourceAttributes{Verb: "get", Resource: "nodes"}); err != nil {
		t.Error(err)
	}
	close(answer)
	for range maxReviews {
		var no *Refusal
		if err := <-done; !errors.As(err, &no) || no.Code != http.StatusUnauthorized {
			t.Errorf("a guessed token: %v", err)
		}
	}
}
