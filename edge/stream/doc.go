// Package stream is the kubelet's HTTP API of one node: logs, exec, attach,
// port-forward, the pods and their figures, the node's own logs. The apiserver's
// requests come by streams which the hub opens in the node's own connection, one
// request on each; edgecore serves the same handler on its local socket. Paths,
// parameters, status codes and messages are the kubelet's wherever it has them.
//
// Who may ask was decided before: by the hub for its streams (SubjectAccessReview), by
// the socket's mode for the local one.
//
// exec and attach are handed on to containerd's streaming server as bytes, so SPDY and
// websocket are between it and the client. Ports that kubectl's clients forward end
// here, because containerd keeps no half of a connection that has ended its other one;
// older clients' are containerd's, too. Logs are read from the
// files (edge/containerlog), without the runtime if it is away. The room changes
// nothing on the node, keeps no state, and ends each request with its stream.
package stream
