// Package stats tells what the node and its pods use: processor, memory, network and disk, in the forms of the kubelet's
// /stats/summary, /metrics/resource and /metrics/cadvisor, so that metrics-server, kubectl top and dashboards read a
// Holdfast node as any other.
//
// edge/stream serves its Handler, towards the cloud and on the node's own socket. Containers' figures come from the
// runtime (edge/runtime), those of pods from their cgroups, of version 1 or 2, and the node's from /proc and the root
// cgroup. It measures only when it is asked and does nothing at rest; what was measured is given to everybody who asks
// within two seconds, and those who ask at once share one measurement. A runtime that hangs costs an asker five seconds
// and leaves the node's own figures standing.
//
// It changes nothing on the node. Not told are the sizes of volumes, which would have to be counted file by file.
package stats
