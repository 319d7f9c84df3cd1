// Package rig builds the real parts that tests, the demo and the benchmark stand on: network namespaces
// that play a node whose line can be cut, a containerd of one's own on a root of its own, and the power cut
// that reboots such a node without rebooting the machine.
//
// Every part is an instance: it has a unique name, touches nothing that it did not make, runs beside others
// of its kind, and goes away with Close or Stop. What a killed process leaves behind is found in the
// instances' records (see record.go) and cleared by the next one that starts.
//
// It is called by tests, by the demo and by the benchmark, never by the product. It never talks to a
// containerd that it did not start, never changes an interface that it did not create, and never reaches
// beyond the machine.
package rig
