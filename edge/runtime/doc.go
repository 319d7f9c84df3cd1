// Package runtime drives containerd for the rest of the edge: it runs pod sandboxes and containers, pulls images,
// observes what exists and passes on containerd's own events. It owns everything that speaks CRI: the connection, the
// names, labels, annotations, log paths and cgroups (all of them the kubelet's, so that a node can be converted from a
// kubelet and back and crictl and log collectors keep working), and the translation of a pod's spec, security context
// and resources into CRI's words. Its callers are edge/pod, which decides what shall run, and edge/node, which asks
// what the runtime is.
//
// It never decides: nothing here restarts, retries or backs off on its own behalf, except that the event stream
// reconnects for ever. It keeps no state that a restart would lose. No other room imports cri-api.
//
// What a caller puts together for one pod:
//
//	EnsurePodCgroup -> RunSandbox -> Inspect (the sandbox's IPs) -> WriteEtcHosts -> for each container:
//	Image / Pull -> CreateContainer -> StartContainer
//
// CreateContainer adds the mounts that belong to every container (the managed /etc/hosts and the termination message
// file) when ContainerSpec.EtcHosts and ContainerSpec.TerminationLog name their files on the node; everything else in
// ContainerSpec.Mounts is edge/volume's work.
package runtime
