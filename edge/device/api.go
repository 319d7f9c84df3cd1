package device

import (
	"errors"
	"fmt"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Errors of operations beside *twin.RejectedError and those of edge/store; test
// with errors.Is.
var (
	// ErrUnknownDevice: the node holds no such Device.
	ErrUnknownDevice = errors.New("this node has no such device")
	// ErrTooMany: the device says more than it may; nothing was taken.
	ErrTooMany = errors.New("the device sends too many updates")
	// ErrTooLarge: the operation names too many properties; nothing was taken.
	ErrTooLarge = fmt.Errorf("an update has more than %d properties", twin.MaxProperties)
	// ErrEnded: edgecore is stopping; nothing was taken.
	ErrEnded = errors.New("edgecore is stopping")
)

// Update is one value in an operation.
type Update struct {
	Property string
	Value    twin.Value // At 0 means now
}

// Operation is what somebody at the node says of one device. It is taken as a
// whole or, when one of its values is refused, not at all.
type Operation struct {
	Key twin.Key
	// Reported are values that the device has.
	Reported []Update
	// Desired are values that somebody at the node wants it to have.
	Desired []Update
	// State is the device's connection; empty: a device that reports is online.
	State v1beta1.DeviceState
	// Source says who is speaking, for Changes: a listener need not be told what it
	// said itself.
	Source any
	// Done is called once, from a goroutine of the Manager and in the order of
	// Submit: with the device before and after the commit, or with an error, when
	// nothing was taken. It must not block. nil: nobody needs an answer.
	Done func(before, after View, err error)
}

// View is a device as of one moment. What it leads to must not be changed.
type View struct {
	*twin.Definition
	Twin *twin.Twin
}

// Change tells a listener what has become of a device.
type Change struct {
	// Before and After are the device before and after; Before.Definition is nil for
	// one that is new, After.Definition for one that was removed.
	Before, After View
	// Source is that of the operation; nil: the cloud.
	Source any
}

// Key names the device.
func (c Change) Key() twin.Key {
	if c.After.Definition != nil {
		return c.After.Key
	}
	return c.Before.Key
}
