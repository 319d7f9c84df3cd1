package localstatus

import (
	"context"
	"time"
)

// DevicesPath is where a node's devices are served, on SocketName and on
// DevicesSocketName.
const DevicesPath = "/devices"

// DevicesSocketName is the name, in the run directory, of the socket of the devices'
// HTTP API, for programs of root's group.
const DevicesSocketName = "devices.sock"

// Devices are the devices of a node.
type Devices struct {
	Devices []Device `json:"devices"`
}

// Device is one device as its node knows it.
type Device struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Model     string `json:"model,omitempty"`
	Protocol  string `json:"protocol,omitempty"`
	State     string `json:"state"`
	// Heard is when the device was last heard, by the node's clock; nil: never.
	Heard      *time.Time `json:"heard,omitempty"`
	Problem    string     `json:"problem,omitempty"`
	Properties []Property `json:"properties"`
}

// Property is one property of a device.
type Property struct {
	Name     string     `json:"name"`
	Type     string     `json:"type"`
	Access   string     `json:"access"`
	Unit     string     `json:"unit,omitempty"`
	Reported *string    `json:"reported,omitempty"`
	At       *time.Time `json:"at,omitempty"` // of Reported
	Desired  *string    `json:"desired,omitempty"`
	// DesiredBy is cloud or edge.
	DesiredBy  string `json:"desiredBy,omitempty"`
	Overridden string `json:"overridden,omitempty"` // a local value that the cloud's newer word ended
	Rejected   string `json:"rejected,omitempty"`   // why the last value was refused
	Waiting    int    `json:"waiting,omitempty"`    // values of a history that the hub has yet to take
	Unreported bool   `json:"unreported,omitempty"` // the hub has yet to hear of the latest
}

// GetDevices asks the edgecore whose run directory it is.
func GetDevices(ctx context.Context, runDir string) (d Devices, err error) {
	return d, get(ctx, runDir, DevicesPath, &d)
}
