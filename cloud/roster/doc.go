// Package roster says which objects an edge node must hold and what must be
// sent so that it does. It owns the stripped form in which objects travel,
// which ConfigMaps and Secrets a pod refers to, and the order of changes.
// cloud/watch and cloud/hub call it. It is pure: no I/O, no clock, no
// goroutine, and it never decides that something unknown is gone.
package roster
