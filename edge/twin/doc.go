// Package twin says what a device is and what becomes of a value: whether it may
// be reported or desired, who wins when the cloud and a program on the node want
// different things, and what the cloud must still be told (keps/0014-devices.md).
// edge/device calls it and keeps what it returns. It is pure: no I/O, no clock, no
// goroutine; nothing that it was given is changed.
package twin
