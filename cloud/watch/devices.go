package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-edge/holdfast/cloud/crd"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// devices is what is known of devices.holdfast.io. A cluster may not have it, or
// not let cloudcore read it: nothing else waits for it.
type devices struct {
	shelf  *shelved[keptDevice]
	models *pool[keptModel]
	routes *pool[keptRoute]
}

// keptDevice is what the hub holds of a device: the item that travels and, for
// whoever writes it, the status.
type keptDevice struct {
	item    *roster.Item
	model   string // its key; "" for none
	version string
	status  []byte // JSON
}

type keptModel struct{ item *roster.Item }

type keptRoute struct {
	item *roster.Item
	spec v1beta1.RouteSpec // who is selected, and nothing else
	url  string            // of the endpoint, which does not travel

	dropped []v1beta1.RouteNode
}

func (c *Cluster) followDevices(client *crd.Client) {
	failed := func(key string, err error) { c.log.Error("an object cannot be kept", "object", key, "err", err) }
	d := &devices{}
	d.shelf = shelve(c, crd.Devices, placeDevice, keepDevice, func(node string) string {
		return fields.OneTermEqualSelector("spec.nodeName", node).String()
	})
	d.shelf.moving()
	d.shelf.quiet = func(was, now *keptDevice) bool { return was.item == now.item }
	d.models = &pool[keptModel]{place: keyOfObject, keep: keepModel, failed: failed, settled: c.signalAll, objects: make(map[string]*keptModel),
		same:    func(a, b *keptModel) bool { return sameItem(a.item, b.item) },
		changed: func(key string, _, _ *keptModel) { c.modelChanged(key) },
	}
	d.routes = &pool[keptRoute]{place: keyOfObject, keep: keepRoute, failed: failed, settled: c.signalAll, objects: make(map[string]*keptRoute),
		same:    func(a, b *keptRoute) bool { return sameItem(a.item, b.item) },
		changed: func(_ string, was, now *keptRoute) { c.routeChanged(was, now) },
	}
	optional := func(resource string, to sink, all bool) *stream {
		s := c.follow(resource, client.Source(resource), to)
		s.optional, s.all = true, all
		return s
	}
	d.shelf.stream = optional(crd.Devices, passingDevices{d.shelf.shelf, c}, false)
	d.shelf.tide = newTide(d.shelf.stream.source)
	optional(crd.Models, d.models, true)
	optional(crd.Routes, d.routes, true)
	c.devices = d
}

// passingDevices is passing for a kind that may be absent.
type passingDevices struct {
	*shelf[keptDevice]
	cluster *Cluster
}

func (p passingDevices) event(obj runtime.Object, gone bool) {
	p.cluster.devicePasses(obj, gone)
	p.shelf.event(obj, gone)
}

func (p passingDevices) listed(obj runtime.Object, gone bool) {
	p.cluster.devicePasses(obj, gone)
	p.shelf.listed(obj, gone)
}

func (p passingDevices) started(version string) {
	p.shelf.started(version)
	for _, f := range p.cluster.onDevice {
		f.anew()
	}
}

func (c *Cluster) devicePasses(obj runtime.Object, gone bool) {
	if d, ok := obj.(*v1beta1.Device); ok && !gone {
		for _, f := range c.onDevice {
			f.one(d)
		}
	}
}

// onDevice is somebody who looks at devices.
type onDevice struct {
	one  func(*v1beta1.Device)
	anew func()
}

// OnDevices is OnPod for devices, also those of no node. anew is called when they
// begin to be followed: those that were there before do not pass by.
func (c *Cluster) OnDevices(f func(*v1beta1.Device), anew func()) {
	c.onDevice = append(c.onDevice, onDevice{f, anew})
}

func placeDevice(obj runtime.Object) (node, key, version string) {
	d, ok := obj.(*v1beta1.Device)
	if !ok {
		return "", "", ""
	}
	return d.Spec.NodeName, d.Namespace + "/" + d.Name, d.ResourceVersion
}

func keepDevice(obj runtime.Object, was *keptDevice) (*keptDevice, error) {
	d, ok := obj.(*v1beta1.Device)
	if !ok {
		return nil, fmt.Errorf("a %T is no device", obj)
	}
	item, err := roster.Device(d)
	if err != nil {
		return nil, err
	}
	kept := &keptDevice{item: item, version: d.ResourceVersion}
	if d.Spec.DeviceModelRef != nil {
		kept.model = d.Namespace + "/" + d.Spec.DeviceModelRef.Name
	}
	if was != nil && sameItem(was.item, item) {
		kept.item, kept.model = was.item, was.model
	}
	if kept.status, err = json.Marshal(&d.Status); err != nil {
		return nil, fmt.Errorf("encode the status of device %s/%s: %w", d.Namespace, d.Name, err)
	}
	return kept, nil
}

func (k *keptDevice) device() (*v1beta1.Device, error) {
	d := new(v1beta1.Device)
	if err := json.Unmarshal(k.item.Payload(), d); err != nil {
		return nil, fmt.Errorf("decode what is kept of a device: %w", err)
	}
	if err := json.Unmarshal(k.status, &d.Status); err != nil {
		return nil, fmt.Errorf("decode the status of device %s/%s: %w", d.Namespace, d.Name, err)
	}
	d.ResourceVersion = k.version
	return d, nil
}

func keepModel(obj runtime.Object) (*keptModel, error) {
	m, ok := obj.(*v1beta1.DeviceModel)
	if !ok {
		return nil, fmt.Errorf("a %T is no device model", obj)
	}
	item, err := roster.Model(m)
	return &keptModel{item}, err
}

func keepRoute(obj runtime.Object) (*keptRoute, error) {
	r, ok := obj.(*v1beta1.Route)
	if !ok {
		return nil, fmt.Errorf("a %T is no route", obj)
	}
	item, err := roster.Route(r)
	spec := v1beta1.RouteSpec{NodeName: r.Spec.NodeName, NodeSelector: r.Spec.NodeSelector}
	kept := &keptRoute{item: item, spec: spec, dropped: r.Status.Nodes}
	if r.Spec.Up != nil && r.Spec.Up.HTTP != nil {
		kept.url = r.Spec.Up.HTTP.URL
	}
	return kept, err
}

func keyOfObject(obj runtime.Object) string {
	m, ok := obj.(interface {
		GetNamespace() string
		GetName() string
	})
	if !ok {
		return ""
	}
	return m.GetNamespace() + "/" + m.GetName()
}

// modelChanged tells the nodes whose devices are of the model.
func (c *Cluster) modelChanged(key string) {
	nodes := make(map[string]bool)
	c.devices.shelf.each(func(node string, kept *keptDevice) {
		if kept.model == key {
			nodes[node] = true
		}
	})
	for node := range nodes {
		c.signal(node)
	}
}

// routeChanged tells the nodes that a route selects, or did; those that it chooses
// by label look for themselves.
func (c *Cluster) routeChanged(was, now *keptRoute) {
	for _, r := range []*keptRoute{was, now} {
		switch {
		case r == nil:
		case r.spec.NodeName != "":
			c.signal(r.spec.NodeName)
		default:
			c.signalAll()
			return
		}
	}
}

func (c *Cluster) signalAll() {
	c.mu.Lock()
	nodes := slices.Collect(maps.Keys(c.followers))
	c.mu.Unlock()
	for _, node := range nodes {
		c.signal(node)
	}
}

// loadDevices makes sure that a followed node's devices are known, where that can
// be. Until the cluster is followed there is nothing to be done, nor to be told.
func (c *Cluster) loadDevices(ctx context.Context, node string) error {
	if c.devices == nil {
		return nil
	}
	if err := c.devices.shelf.load(ctx, node); !errors.Is(err, errNotYet) {
		return err
	}
	return nil
}

// addDevices adds a node's devices, their models, and its routes.
func (c *Cluster) addDevices(w *roster.Wanted, node string, nodes []*keptNode) error {
	if c.devices == nil {
		w.DevicesUnknown = true
		return nil
	}
	kept, known := c.devices.shelf.get(node)
	routes, also := c.devices.routes.all()
	if !known || !also || !c.devices.models.isKnown() {
		w.DevicesUnknown = true
		return nil
	}
	add := func(i *roster.Item) { w.Items[roster.IDOf(i.Ref)] = i }
	for _, d := range kept {
		add(d.item)
		if m := c.devices.models.get(d.model); m != nil {
			add(m.item)
		}
	}
	var own *corev1.Node
	for _, r := range routes {
		if len(r.spec.NodeSelector) > 0 && len(nodes) == 0 {
			w.DevicesUnknown = true // its labels are gone with its Node, which it makes again
			continue
		}
		if own == nil && len(r.spec.NodeSelector) > 0 {
			var err error
			if own, err = nodes[0].node(); err != nil {
				w.DevicesUnknown = true
				return err
			}
		}
		var labels map[string]string
		if own != nil {
			labels = own.Labels
		}
		if roster.Selected(&r.spec, node, labels) {
			add(r.item)
		}
	}
	return nil
}

// Device returns a device of a followed node with the status that is known last,
// or nil. What it returns is the caller's.
func (c *Cluster) Device(node, namespace, name string) *v1beta1.Device {
	if c.devices == nil {
		return nil
	}
	kept := c.devices.shelf.one(node, namespace+"/"+name)
	if kept == nil {
		return nil
	}
	d, err := kept.device()
	if err != nil {
		c.log.Error("a device that is kept cannot be read", "device", namespace+"/"+name, "err", err)
		return nil
	}
	return d
}

// Route returns a route as it is known last, or nil. What it returns is the
// caller's.
func (c *Cluster) Route(namespace, name string) *v1beta1.Route {
	if c.devices == nil {
		return nil
	}
	kept := c.devices.routes.get(namespace + "/" + name)
	if kept == nil {
		return nil
	}
	r := new(v1beta1.Route)
	if err := json.Unmarshal(kept.item.Payload(), r); err != nil {
		c.log.Error("a route that is kept cannot be read", "route", namespace+"/"+name, "err", err)
		return nil
	}
	r.Status.Nodes = kept.dropped
	if r.Spec.Up != nil && r.Spec.Up.HTTP != nil {
		r.Spec.Up.HTTP.URL = kept.url
	}
	return r
}

// Wrote takes what the apiserver made of a status that this hub wrote, before the
// watch tells of it.
func (c *Cluster) Wrote(node string, d *v1beta1.Device) {
	status, err := json.Marshal(&d.Status)
	if c.devices == nil || err != nil {
		return // the watch tells of it
	}
	c.devices.shelf.amend(node, d.Namespace+"/"+d.Name, func(was *keptDevice) *keptDevice {
		if was.item.Ref.GetUid() != string(d.UID) || older(d.ResourceVersion, was.version) {
			return nil
		}
		return &keptDevice{item: was.item, model: was.model, version: d.ResourceVersion, status: status}
	})
}
