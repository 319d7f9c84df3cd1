// Package crd speaks with the apiserver about the objects of devices.holdfast.io:
// typed reads, watches and writes in JSON. cloud/watch, cloud/device and
// cloud/route use it, with cloudcore's own identity or that of a node
// (cloud/asnode). It keeps nothing and decides nothing.
package crd

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// Resources of the group.
const (
	Devices = "devices"
	Models  = "devicemodels"
	Routes  = "routes"
)

// Client speaks as one identity.
type Client struct{ rest rest.Interface }

// New makes a client of a config, whose content types do not matter: there is no
// protobuf of these objects.
func New(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := v1beta1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("make the client of %s: %w", v1beta1.GroupVersion(), err)
	}
	c, version := rest.CopyConfig(config), v1beta1.GroupVersion()
	c.APIPath, c.GroupVersion = "/apis", &version
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make the client of %s: %w", version, err)
	}
	return &Client{client}, nil
}

// Source lists and watches one resource in all namespaces.
type Source struct {
	client   *Client
	resource string
	list     func() runtime.Object
}

// Source returns that of a resource.
func (c *Client) Source(resource string) *Source {
	list := map[string]func() runtime.Object{
		Devices: func() runtime.Object { return new(v1beta1.DeviceList) },
		Models:  func() runtime.Object { return new(v1beta1.DeviceModelList) },
		Routes:  func() runtime.Object { return new(v1beta1.RouteList) },
	}[resource]
	return &Source{client: c, resource: resource, list: list}
}

// ListWithContext lists.
func (s *Source) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	list := s.list()
	err := s.client.rest.Get().Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(list)
	return list, err
}

// WatchWithContext watches.
func (s *Source) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return s.client.rest.Get().Resource(s.resource).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
}

// Device reads one device.
func (c *Client) Device(ctx context.Context, namespace, name string) (*v1beta1.Device, error) {
	d := new(v1beta1.Device)
	return d, c.rest.Get().Namespace(namespace).Resource(Devices).Name(name).Do(ctx).Into(d)
}

// Route reads one route.
func (c *Client) Route(ctx context.Context, namespace, name string) (*v1beta1.Route, error) {
	r := new(v1beta1.Route)
	return r, c.rest.Get().Namespace(namespace).Resource(Routes).Name(name).Do(ctx).Into(r)
}

// ListDevices lists devices of all namespaces.
func (c *Client) ListDevices(ctx context.Context, o metav1.ListOptions) (*v1beta1.DeviceList, error) {
	list := new(v1beta1.DeviceList)
	return list, c.rest.Get().Resource(Devices).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(list)
}

// UpdateDeviceStatus writes the status of a device, if it is still the one of d's
// uid and resource version. Nothing else of d is looked at.
func (c *Client) UpdateDeviceStatus(ctx context.Context, d *v1beta1.Device) (*v1beta1.Device, error) {
	out := new(v1beta1.Device)
	body := &v1beta1.Device{TypeMeta: typeMeta("Device"), ObjectMeta: identity(d.ObjectMeta), Status: d.Status}
	return out, c.rest.Put().Namespace(d.Namespace).Resource(Devices).Name(d.Name).SubResource("status").Body(body).Do(ctx).Into(out)
}

// UpdateRouteStatus is the same for a route.
func (c *Client) UpdateRouteStatus(ctx context.Context, r *v1beta1.Route) (*v1beta1.Route, error) {
	out := new(v1beta1.Route)
	body := &v1beta1.Route{TypeMeta: typeMeta("Route"), ObjectMeta: identity(r.ObjectMeta), Status: r.Status}
	return out, c.rest.Put().Namespace(r.Namespace).Resource(Routes).Name(r.Name).SubResource("status").Body(body).Do(ctx).Into(out)
}

// PatchDevice applies a JSON merge patch to a device.
func (c *Client) PatchDevice(ctx context.Context, namespace, name string, patch []byte) (*v1beta1.Device, error) {
	out := new(v1beta1.Device)
	return out, c.rest.Patch(types.MergePatchType).Namespace(namespace).Resource(Devices).Name(name).Body(patch).Do(ctx).Into(out)
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: v1beta1.GroupVersion().String(), Kind: kind}
}

func identity(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}
