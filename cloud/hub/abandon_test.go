package hub

import (
	"errors"
	"testing"

	"github.com/holdfast-edge/holdfast/cloud/delivery"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// TestMessagesThatNobodyWaitsForAnyMoreAreNotKept: a line that takes nothing must
// not make a hub keep what is published meanwhile.
func TestMessagesThatNobodyWaitsForAnyMoreAreNotKept(t *testing.T) {
	s := &session{delivery: delivery.New(nil), knows: uint32(wire.KindMax), sending: true}
	s.delivery.Welcome()
	s.reply(&wire.HubMessage{Body: &wire.HubMessage_Claimed{Claimed: new(wire.Claimed)}})
	for range 3 {
		var ids []uint64
		for range maxPublishing {
			id, err := s.publish(&wire.Publish{Payload: make([]byte, 10)}, make(chan *wire.Published, 1))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		if _, err := s.publish(new(wire.Publish), nil); !errors.Is(err, ErrBusy) {
			t.Errorf("one too many: %v", err)
		}
		for _, id := range ids {
			s.abandon(id)
		}
	}
	if len(s.replies) != 1 || s.replies[0].GetClaimed() == nil {
		t.Errorf("%d messages are kept", len(s.replies))
	}
}
