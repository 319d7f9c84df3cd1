// Package device keeps the twins of the node's devices: it follows the Devices and
// models in the store, takes what devices, mappers and programs on the node say,
// commits it, and only then answers; it tells those who serve devices what has
// changed, and uplink what the hub has yet to hear. What a value may be and who
// wins is edge/twin's to say. edge/mqtt, edge/dmi and the local HTTP API call it.
// It knows no protocol of devices, and goes on without a line to the cloud.
package device
