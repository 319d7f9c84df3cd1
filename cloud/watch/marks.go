package watch

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// marks remember, of all ConfigMaps or all Secrets, those that followed nodes'
// pods refer to, and of these the version in which each last came by. A node's
// interest is marked before it reads an object, so that no change is missed.
type marks struct {
	kind    wire.Kind
	changed func(node string)
	unread  func(roster.Key) // nobody refers to it any more

	mu    sync.Mutex
	byKey map[roster.Key]*mark
	nodes map[string][]*mark // by node that refers to it
}

type mark struct {
	key   roster.Key
	nodes map[string]struct{}
	// seen says what the watch last told: a version, or anything that no object
	// has for a version. "" is nothing yet.
	seen   string
	listed string // the version that a list of everything has told
}

func newMarks(kind wire.Kind, changed func(string), unread func(roster.Key)) *marks {
	return &marks{kind: kind, changed: changed, unread: unread, byKey: make(map[roster.Key]*mark), nodes: make(map[string][]*mark)}
}

// refer replaces what a node refers to, and writes what was last seen of each
// object into seen. Keys of another kind are left alone.
func (m *marks) refer(node string, keys map[roster.Key]bool, seen map[roster.Key]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var now []*mark
	for k := range keys {
		if k.Kind != m.kind {
			continue
		}
		at := m.byKey[k]
		if at == nil {
			at = &mark{key: k, nodes: make(map[string]struct{}, 1)}
			m.byKey[k] = at
		}
		at.nodes[node] = struct{}{}
		seen[k] = at.seen
		now = append(now, at)
	}
	for _, at := range m.nodes[node] {
		if !keys[at.key] {
			m.release(node, at)
		}
	}
	if m.nodes[node] = now; len(now) == 0 {
		delete(m.nodes, node)
	}
}

// drop forgets a node.
func (m *marks) drop(node string) { m.refer(node, nil, nil) }

func (m *marks) release(node string, at *mark) {
	if delete(at.nodes, node); len(at.nodes) == 0 {
		delete(m.byKey, at.key)
		m.unread(at.key)
	}
}

// size is how many objects are referred to.
func (m *marks) size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.byKey)
}

func (m *marks) key(obj runtime.Object) (k roster.Key, version string) {
	o, ok := obj.(*metav1.PartialObjectMetadata)
	if !ok {
		return k, ""
	}
	return roster.Key{Kind: m.kind, Namespace: o.Namespace, Name: o.Name}, o.ResourceVersion
}

func (m *marks) started(string) {}
func (m *marks) reached(string) {}

// event takes one change: a deletion has a version, too.
func (m *marks) event(obj runtime.Object, _ bool) {
	key, version := m.key(obj)
	m.tell(m.see(key, version))
}

func (m *marks) see(key roster.Key, version string) (nodes []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.byKey[key]
	if at == nil {
		return nil
	}
	return at.see(version)
}

// see takes what was told and returns whom it concerns.
func (at *mark) see(version string) (nodes []string) {
	if at.seen == version || older(version, at.seen) {
		return nil
	}
	at.seen = version
	for node := range at.nodes {
		nodes = append(nodes, node)
	}
	return nodes
}

func (m *marks) tell(nodes []string) {
	for _, node := range nodes {
		m.changed(node)
	}
}

func (m *marks) relisting() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range m.byKey {
		at.listed = ""
	}
}

func (m *marks) listed(obj runtime.Object, gone bool) {
	key, version := m.key(obj)
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := m.byKey[key]; at != nil {
		if gone {
			version = ""
		}
		at.listed = version
	}
}

// relisted compares what was listed with what was seen. What the list has not
// told since it was marked is to be read again: it may be gone or have changed.
func (m *marks) relisted(version string, anew bool) {
	told := make(map[string]bool)
	m.mu.Lock()
	for _, at := range m.byKey {
		seen := version
		if at.listed != "" {
			seen = at.listed
		}
		if anew {
			seen = "restored " + seen // newer than every version, as order has it
		}
		at.listed = ""
		for _, node := range at.see(seen) {
			told[node] = true
		}
	}
	m.mu.Unlock()
	for node := range told {
		m.changed(node)
	}
}
