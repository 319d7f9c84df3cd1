package device

import (
	"slices"
)

// queue holds the values of a history that the hub does not have yet, oldest first.
type queue struct {
	refs   []valueRef
	flying uint64 // values up to this ID are in a report that is under way
}

// valueRef is a value in the store.
type valueRef struct{ id, number uint64 }

func (d *device) queue(name string) *queue {
	q := d.queues[name]
	if q == nil {
		q = new(queue)
		if d.queues == nil {
			d.queues = make(map[string]*queue)
		}
		d.queues[name] = q
	}
	return q
}

func (d *device) backlog(name string) []valueRef {
	if q := d.queues[name]; q != nil {
		return q.refs
	}
	return nil
}

// grounded are the values of a history that are in no report.
func (m *Manager) grounded(d *device, name string) []valueRef {
	m.mu.RLock()
	defer m.mu.RUnlock()
	q := d.queues[name]
	if q == nil {
		return nil
	}
	at, _ := slices.BinarySearchFunc(q.refs, q.flying+1, func(r valueRef, id uint64) int {
		if r.id < id {
			return -1
		}
		return 1
	})
	return q.refs[at:]
}

// drop takes values out, by ID and in order.
func (q *queue) drop(ids []uint64) {
	kept := make([]valueRef, 0, len(q.refs))
	for _, r := range q.refs {
		if _, found := slices.BinarySearch(ids, r.id); !found {
			kept = append(kept, r)
		}
	}
	q.refs = kept
}
