// Package device is the cloud's side of devices (keps/0014-devices.md). It owns
// how a node's reports are merged into a Device's status (merge.go, pure), and
// writes it in the node's name; and it owns what cloudcore itself says of devices:
// which node one without a node is bound to, and that nothing is known of those of
// a silent node. cloud/hub hands it reports, within the bounds of cloud/report;
// cloud/watch tells it what devices there are, and cloud/autonomy which hub speaks
// for the cluster. It keeps no device, and never writes the status of a device in
// the name of a node that it is not bound to.
package device
