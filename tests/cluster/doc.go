// Package cluster starts the embedded control plane for tests, the demo and the benchmark.
//
// It owns one running process of build/controlplane: finding or building the binary, choosing a
// port, waiting until the cluster answers, stopping it, killing it and starting it again on the
// same data and the same address. tests/world and single tests call it. It never touches a
// cluster that it did not start, and the kernel ends the process with the program that started
// it, so that a killed test leaves nothing behind.
package cluster
