package mqtt

import "sync"

// order acknowledges the messages of one connection in the order in which they
// came, as MQTT has it (3.1.1, 4.6), whichever is settled first. After one that
// failed nothing is acknowledged any more: all that follows comes again, in order.
type order struct {
	broken func(error) // called once, when a message has failed

	mu     sync.Mutex
	queue  []*slot
	failed bool
}

// slot is the place of one message.
type slot struct {
	settled bool
	ack     func() // must not block
	err     error
}

// open takes the place of the next message.
func (o *order) open() *slot {
	s := new(slot)
	o.mu.Lock()
	o.queue = append(o.queue, s)
	o.mu.Unlock()
	return s
}

// settle says that a message may be acknowledged, or that it failed.
func (o *order) settle(s *slot, ack func(), err error) {
	o.mu.Lock()
	s.settled, s.ack, s.err = true, ack, err
	var failure error
	for len(o.queue) > 0 && o.queue[0].settled && !o.failed {
		head := o.queue[0]
		o.queue[0] = nil
		o.queue = o.queue[1:]
		if head.err != nil {
			o.failed, o.queue, failure = true, nil, head.err
		} else if head.ack != nil {
			head.ack()
		}
	}
	o.mu.Unlock()
	if failure != nil {
		o.broken(failure)
	}
}
