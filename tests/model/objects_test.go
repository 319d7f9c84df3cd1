package model

import (
	"bytes"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// The small world has two names, of a pod and of a ConfigMap. Under each, objects
// come and go: the first has the uid 1, the next the uid 2, and so on.
const (
	slots    = 2
	podSlot  = 0
	maxUID   = 3
	versions = 2
)

// slot is what the cluster has under one name.
type slot struct {
	uid     uint8 // of the latest object; 0: there was none yet
	version uint8 // 0: it is deleted
	ended   bool  // a pod that has run to its end
}

// truth is what the cluster wants of the node.
type truth [slots]slot

// holding is what an edge holds: versions by name and uid, 0 for none.
type holding [slots][maxUID + 1]uint8

// objects are all the objects there can be, made once: states share them.
type objects struct {
	items   [slots][maxUID + 1][versions + 1]*roster.Item
	wanted  map[view]*roster.Wanted
	numbers map[*roster.Wanted]uint16 // of wanted, for fingerprints
}

// view is what a hub believes of the truth.
type view struct {
	truth truth
	blind blindness
}

// blindness is how a hub's look at the cluster can be wrong.
type blindness uint8

const (
	seesAll    blindness = iota
	missesPod            // a pod is missing in a cache
	waitsForIt           // a pod waits for what it refers to
	cannotRead           // a ConfigMap that cannot be read
	blindnesses
)

func newObjects(t testing.TB) *objects {
	o := &objects{wanted: make(map[view]*roster.Wanted), numbers: make(map[*roster.Wanted]uint16)}
	for uid := uint8(1); uid <= maxUID; uid++ {
		for version := uint8(1); version <= versions; version++ {
			meta := func(s int) metav1.ObjectMeta {
				return metav1.ObjectMeta{Namespace: "shop", Name: "till", UID: types.UID(uidOf(s, uid)), Generation: int64(version)}
			}
			pod, err := roster.Pod(&corev1.Pod{ObjectMeta: meta(podSlot)})
			if err != nil {
				t.Fatal(err)
			}
			configMap, err := roster.ConfigMap(&corev1.ConfigMap{ObjectMeta: meta(1), Data: map[string]string{"version": fmt.Sprint(version)}})
			if err != nil {
				t.Fatal(err)
			}
			o.items[podSlot][uid][version], o.items[1][uid][version] = pod, configMap
		}
	}
	return o
}

func uidOf(s int, uid uint8) string { return string([]byte{"pc"[s], '0' + uid}) }

// place is the inverse of uidOf.
func place(uid string) (s int, n uint8) {
	if uid[0] == 'c' {
		s = 1
	}
	return s, uid[1] - '0'
}

// versionOf tells which version of its object a reference names; 0: none.
func (o *objects) versionOf(r *wire.ObjectRef) uint8 {
	s, uid := place(r.GetUid())
	for version := uint8(1); version <= versions; version++ {
		if bytes.Equal(o.items[s][uid][version].Ref.GetVersion(), r.GetVersion()) {
			return version
		}
	}
	return 0
}

// see is what a hub makes of the truth.
func (o *objects) see(v view) *roster.Wanted {
	if w := o.wanted[v]; w != nil {
		return w
	}
	w := &roster.Wanted{Items: make(map[roster.ID]*roster.Item), Terminal: make(map[roster.ID]bool),
		Unknown: make(map[roster.Key]bool), Held: make(map[roster.ID]bool)}
	for s, is := range v.truth {
		if is.version == 0 {
			continue
		}
		item := o.items[s][is.uid][is.version]
		id := roster.IDOf(item.Ref)
		switch {
		case s == podSlot && v.blind == missesPod:
			continue
		case s == podSlot && v.blind == waitsForIt:
			w.Held[id] = true
		case s != podSlot && v.blind == cannotRead:
			w.Unknown[roster.KeyOf(item.Ref)] = true
			continue
		}
		w.Items[id] = item
		if is.ended {
			w.Terminal[id] = true
		}
	}
	o.wanted[v] = w
	o.numbers[w] = uint16(len(o.numbers) + 1)
	return w
}

// refs lists what is held.
func (o *objects) refs(h *holding) []*wire.ObjectRef {
	var refs []*wire.ObjectRef
	for s := range h {
		for uid, version := range h[s] {
			if version > 0 {
				refs = append(refs, o.items[s][uid][version].Ref)
			}
		}
	}
	return refs
}

// meets says that the holding is what the truth asks for. A pod that has ended may
// be held or not.
func (h *holding) meets(t *truth) bool {
	for s := range h {
		for uid, version := range h[s] {
			is := t[s]
			wanted := uint8(0)
			if int(is.uid) == uid {
				wanted = is.version
			}
			if version != wanted && !(is.ended && wanted > 0 && version == 0) {
				return false
			}
		}
	}
	return true
}
