// Package volume keeps the volumes of pods on the node's disk: emptyDir, hostPath, configMap, secret, projected and
// downwardAPI. It owns the directories <root>/<pod uid>/volumes and <root>/<pod uid>/volume-subpaths, and what is mounted
// there. edge/pod calls it: Mount before a pod's sandbox starts, ContainerMounts before each container, Refresh when an
// object changed, Unmount when the pod's containers are gone. It reads objects only through Sources and never asks the
// cloud; it never deletes or changes anything outside its own directories, whatever is mounted below them or linked from
// them.
//
// # Where content lies
//
// The files of configMap, secret, projected and downwardAPI volumes are plain files below root, which only root may
// enter, and are removed with the pod. The kubelet mounts a tmpfs for each Secret and each token. Here that would buy
// nothing: the node has to start its pods without the cloud, so edge/store keeps the same Secrets and tokens on the same
// card, and who steals the card has both. It would cost a mount for each pod (each container start reads the whole
// mount table several times) and, after each reboot, all files being written anew. On disk a reboot finds them and
// only compares. Nothing is synced to disk: after a power cut a torn file differs from what it should be and is
// written again before the pod starts.
//
// A memory-backed emptyDir is a tmpfs of its own, because it has a size.
package volume
