// Package install puts Holdfast's objects into a cluster and takes them out
// again, and makes the kubeconfig with which cloudcore enters it. common/adm
// calls it with the administrator's rights; cloudcore never gets those. The CA
// and the join tokens are not its business: common/enrollment/cluster owns them.
package install

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// fieldManager owns, in the cluster, the fields that the manifests set.
const fieldManager = "holdfast"

// Where cloudcore's token is; build/manifests makes it.
const (
	namespace   = "holdfast-system"
	tokenSecret = "cloudcore-token"
)

// How long the controller manager may take to fill in a token, the apiserver to
// take up a new kind, and how often it is looked at.
const (
	tokenWithin  = 2 * time.Minute
	servedWithin = 2 * time.Minute
	lookEvery    = 200 * time.Millisecond
)

// Kinds that are not like others here.
const (
	definition = "CustomResourceDefinition"
	policy     = "ValidatingAdmissionPolicy"
)

// Cluster is a cluster, entered with the administrator's rights.
type Cluster struct {
	config  *rest.Config
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// New prepares to work on a cluster.
func New(config *rest.Config) (*Cluster, error) {
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("enter the cluster at %s: %w", config.Host, err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("enter the cluster at %s: %w", config.Host, err)
	}
	return &Cluster{config: config, dynamic: d, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}, nil
}

// Objects reads all manifests, in the order in which a cluster can take them.
func Objects(files fs.FS) ([]*unstructured.Unstructured, error) {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return nil, err
	}
	var all []*unstructured.Unstructured
	for _, name := range names {
		b, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", name, err)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(b), 4096)
		for {
			o := &unstructured.Unstructured{}
			if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("manifest %s: %w", name, err)
			}
			if len(o.Object) > 0 {
				all = append(all, o)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return all, nil
}

// rank puts first what others need, and what limits a right before the right.
func rank(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "Namespace":
		return 0
	case definition:
		return 1
	case "ServiceAccount":
		return 2
	case policy, policy + "Binding":
		return 3
	}
	return 4
}

// Apply creates the objects or brings them up to date (server-side apply). When it
// returns, the apiserver serves the kinds that they define.
func (c *Cluster) Apply(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		r, err := c.resource(o)
		if err != nil {
			return err
		}
		// Another manager's hold on a field of our own objects is a leftover.
		_, err = r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		if apierrors.IsForbidden(err) {
			return fmt.Errorf("apply %s: %w; init needs a kubeconfig with the rights of a cluster administrator", title(o), err)
		}
		if err != nil {
			return fmt.Errorf("apply %s: %w", title(o), err)
		}
	}
	return c.await(ctx, objects)
}

// await returns when all definitions among the objects are in use.
func (c *Cluster) await(ctx context.Context, objects []*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, servedWithin)
	defer cancel()
	for _, o := range objects {
		if o.GetKind() != definition {
			continue
		}
		r, err := c.resource(o)
		if err != nil {
			return err
		}
		if err := inUse(ctx, r, o); err != nil {
			return err
		}
	}
	return nil
}

// inUse returns when a definition is.
func inUse(ctx context.Context, r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		now, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
		if err == nil && condition(now, "Established") == "True" {
			return nil
		}
		said := fmt.Sprint(err)
		if err == nil {
			conditions, _, _ := unstructured.NestedSlice(now.Object, "status", "conditions")
			said = fmt.Sprint("its conditions: ", conditions)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not in use within %s (%s): %w", title(o), servedWithin, said, ctx.Err())
		case <-tick.C:
		}
	}
}

// condition is the status of one of an object's conditions.
func condition(o *unstructured.Unstructured, kind string) string {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, one := range conditions {
		if one, ok := one.(map[string]any); ok && one["type"] == kind {
			return fmt.Sprint(one["status"])
		}
	}
	return ""
}

// Delete removes the objects, the last first. Those that are gone are no error. With
// a definition of a kind the apiserver deletes all objects of that kind.
func (c *Cluster) Delete(ctx context.Context, objects []*unstructured.Unstructured) error {
	var errs []error
	for _, o := range slices.Backward(objects) {
		r, err := c.resource(o)
		if err == nil {
			err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) {
			errs = append(errs, fmt.Errorf("delete %s: %w", title(o), err))
		}
	}
	return errors.Join(errs...)
}

func title(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

func (c *Cluster) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) && kind.Kind == policy {
		return nil, fmt.Errorf("%s: %w: the cluster must run Kubernetes 1.31 or later", title(o), err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", title(o), err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace()), nil
	}
	return c.dynamic.Resource(mapping.Resource), nil
}

// CloudKubeconfig is a kubeconfig with cloudcore's own token: it may do what
// build/manifests grants it and nothing more. It waits until the token is there.
func (c *Cluster) CloudKubeconfig(ctx context.Context) ([]byte, error) {
	if c.config.Insecure {
		return nil, fmt.Errorf("the kubeconfig for %s skips the check of the apiserver's certificate (insecure-skip-tls-verify): give it the cluster's CA instead", c.config.Host)
	}
	token, err := c.token(ctx)
	if err != nil {
		return nil, err
	}
	own := rest.CopyConfig(c.config)
	if err := rest.LoadTLSFiles(own); err != nil {
		return nil, fmt.Errorf("read the files that the kubeconfig names: %w", err)
	}
	const name = "cloudcore"
	return clientcmd.Write(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server: own.Host + own.APIPath, CertificateAuthorityData: own.CAData, TLSServerName: own.ServerName,
		}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name, Namespace: namespace}},
		CurrentContext: name,
	})
}

func (c *Cluster) token(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenWithin)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		secret, err := c.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(namespace).Get(ctx, tokenSecret, metav1.GetOptions{})
		if err == nil {
			text, _, _ := unstructured.NestedString(secret.Object, "data", "token")
			if token, err := base64.StdEncoding.DecodeString(text); err == nil && len(token) > 0 {
				return string(token), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("secret %s/%s got no token within %s: does the cluster's controller manager run? (last answer: %v)", namespace, tokenSecret, tokenWithin, err)
		case <-tick.C:
		}
	}
}
