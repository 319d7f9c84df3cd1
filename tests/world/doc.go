// Package world puts the real parts together for tests, the demo and the
// benchmark: a control plane and a cloudcore made by `holdfast init`, and edge
// nodes joined by `holdfast join`, each in a network namespace of its own with
// its own containerd, so that a line can be cut and a node can lose its power.
// It starts and breaks things; it asserts nothing.
package world
