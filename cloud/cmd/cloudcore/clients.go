package main

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/holdfast-edge/holdfast/cloud/asnode"
	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/common/config"
)

// clients speak to the apiserver.
type clients struct {
	server        string // its URL
	own           kubernetes.Interface
	asNode        kubernetes.Interface
	metadata      metadata.Interface
	devices       *crd.Client
	devicesAsNode *crd.Client // devices, as the node of the context
	requests      *requests   // of all of them
}

func newClients(cfg config.Cloud) (*clients, error) {
	// With an empty path this is the service account of the pod that runs here.
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reach the apiserver by kubeconfig %q: %w", cfg.Kubeconfig, err)
	}
	rc.UserAgent = "cloudcore/" + version
	// The rooms bound what runs at a time; the apiserver's priority and fairness
	// does the rest. A limit here would let one node delay another.
	rc.QPS = -1
	c := &clients{server: rc.Host, requests: new(requests)}
	rc.Wrap(c.requests.wrap)
	typed := rest.CopyConfig(rc)
	typed.ContentType = runtime.ContentTypeProtobuf
	typed.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	if c.own, err = kubernetes.NewForConfig(typed); err != nil {
		return nil, fmt.Errorf("make the apiserver's client: %w", err)
	}
	if c.asNode, err = asnode.NewClient(typed); err != nil {
		return nil, err
	}
	if c.metadata, err = metadata.NewForConfig(metadata.ConfigFor(rc)); err != nil {
		return nil, fmt.Errorf("make the apiserver's metadata client: %w", err)
	}
	if c.devices, err = crd.New(rc); err != nil {
		return nil, err
	}
	if c.devicesAsNode, err = crd.New(asnode.Config(rc)); err != nil {
		return nil, err
	}
	return c, nil
}
