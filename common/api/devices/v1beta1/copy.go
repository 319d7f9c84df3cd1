package v1beta1

import (
	"encoding/json"

	"k8s.io/apimachinery/pkg/runtime"
)

// The copies go through JSON: these objects are small and seldom copied, and
// nothing of a type can be forgotten.

// DeepCopyObject returns a copy.
func (d *Device) DeepCopyObject() runtime.Object { return d.DeepCopy() }

// DeepCopy returns a copy.
func (d *Device) DeepCopy() *Device { return copyOf(d) }

// DeepCopyObject returns a copy.
func (l *DeviceList) DeepCopyObject() runtime.Object { return copyOf(l) }

// DeepCopyObject returns a copy.
func (m *DeviceModel) DeepCopyObject() runtime.Object { return m.DeepCopy() }

// DeepCopy returns a copy.
func (m *DeviceModel) DeepCopy() *DeviceModel { return copyOf(m) }

// DeepCopyObject returns a copy.
func (l *DeviceModelList) DeepCopyObject() runtime.Object { return copyOf(l) }

// DeepCopyObject returns a copy.
func (r *Route) DeepCopyObject() runtime.Object { return r.DeepCopy() }

// DeepCopy returns a copy.
func (r *Route) DeepCopy() *Route { return copyOf(r) }

// DeepCopyObject returns a copy.
func (l *RouteList) DeepCopyObject() runtime.Object { return copyOf(l) }

func copyOf[T any](of *T) *T {
	if of == nil {
		return nil
	}
	b, err := json.Marshal(of)
	if err != nil {
		panic(err) // every field of these types can be written
	}
	out := new(T)
	if err := json.Unmarshal(b, out); err != nil {
		panic(err) // it was written a moment ago
	}
	return out
}
