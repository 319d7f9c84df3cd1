package pod

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/edge/plan"
)

// recordVersion is written into each record; a newer one is read as far as it is understood.
const recordVersion = 1

// record is what a worker must know after a crash or a reboot. It is stored as JSON in the pod's row,
// once before each start of a container and when the pod ends. It also proves that the pod was run by
// this node's edgecore: without it nothing of an unknown pod is touched.
type record struct {
	Version   int    `json:"version"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Boot      string `json:"boot"` // the durations below are of this boot
	// Start is the status's startTime.
	Start time.Time `json:"start"`
	// The pod was active for Ran in earlier boots and since Since in this one, last known at Mark.
	Ran   time.Duration `json:"ran,omitempty"`
	Since time.Duration `json:"since"`
	Mark  time.Duration `json:"mark"`
	// Phase as last reported: it does not fall back to Pending.
	Phase      corev1.PodPhase       `json:"phase,omitempty"`
	Conditions []corev1.PodCondition `json:"conditions,omitempty"` // as last reported
	Ready      map[string]bool       `json:"ready,omitempty"`      // ids of containers that were ready
	Memory     plan.Memory           `json:"memory"`
	// Last holds how containers last ended.
	Last   map[string]corev1.ContainerStateTerminated `json:"last,omitempty"`
	Ending *plan.Ending                               `json:"ending,omitempty"`
	// Told is the generation of which was told what is not honoured.
	Told int64 `json:"told,omitempty"`
	// Grace is what a pod gets that vanished from the store, in seconds.
	Grace int64 `json:"grace"`
	// Sidecars are named so that such a pod's containers stop in their order.
	Sidecars []string `json:"sidecars,omitempty"`
}

// newRecord begins the memory of a pod.
func newRecord(p *corev1.Pod, c Clock) record {
	now := c.Mono()
	r := record{Version: recordVersion, Namespace: p.Namespace, Name: p.Name, Boot: c.Boot(),
		Start: c.Wall().UTC().Truncate(time.Second), Since: now, Mark: now}
	r.describe(p)
	r.maps()
	return r
}

// describe keeps what is needed to end the pod without its object.
func (r *record) describe(p *corev1.Pod) {
	r.Grace = 30
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
		r.Grace = *g
	}
	r.Sidecars = nil
	for i := range p.Spec.InitContainers {
		if plan.Sidecar(&p.Spec.InitContainers[i]) {
			r.Sidecars = append(r.Sidecars, p.Spec.InitContainers[i].Name)
		}
	}
}

func (r *record) maps() {
	if r.Memory.Attempts == nil {
		r.Memory.Attempts = map[string]uint32{}
	}
	if r.Memory.Crashes == nil {
		r.Memory.Crashes = map[string]plan.Crash{}
	}
	if r.Memory.Exits == nil {
		r.Memory.Exits = map[string]int32{}
	}
	if r.Last == nil {
		r.Last = map[string]corev1.ContainerStateTerminated{}
	}
}

// readRecord reads what was stored. Of another boot only what does not hang on the clock counts: nobody
// is held back for crashes before a reboot.
func readRecord(uid string, b []byte, c Clock) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("memory of the pod with uid %s: %w", uid, err)
	}
	r.maps()
	if r.Boot != c.Boot() {
		now := c.Mono()
		if r.Mark > r.Since {
			r.Ran += r.Mark - r.Since
		}
		r.Boot, r.Since, r.Mark = c.Boot(), now, now
		clear(r.Memory.Crashes)
		if r.Ending != nil {
			r.Ending.Since = now
		}
	}
	return r, nil
}

// clone is safe to hand to another goroutine.
func (r *record) clone() record {
	out := *r
	out.Memory.Attempts = maps.Clone(r.Memory.Attempts)
	out.Memory.Crashes = maps.Clone(r.Memory.Crashes)
	out.Memory.Exits = maps.Clone(r.Memory.Exits)
	out.Last = maps.Clone(r.Last)
	if r.Ending != nil {
		e := *r.Ending
		out.Ending = &e
	}
	return out
}

func (r *record) marshal() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("memory of pod %s/%s: %w", r.Namespace, r.Name, err)
	}
	return b, nil
}

// shadow stands for a pod whose object is gone: enough of it to be ended.
func (r *record) shadow(uid string) *corev1.Pod {
	grace := r.Grace
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Name, UID: types.UID(uid)}}
	p.Spec.TerminationGracePeriodSeconds = &grace
	always := corev1.ContainerRestartPolicyAlways
	for _, name := range r.Sidecars {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: name, RestartPolicy: &always})
	}
	return p
}
