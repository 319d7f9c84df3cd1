// Package tunnel is the kubelet's API of every edge node towards the cluster: logs,
// exec, attach, port-forward, metrics and all else that an apiserver, a
// metrics-server or a scraper asks of a node. Each node has a port of its own at
// this hub, which its Node object names, so that a request says by its port which
// node it is for (keps/0015-reaching-nodes.md). Who asks, and whether he may, is
// checked as a kubelet does (cloud/access); then the request goes on unchanged, in
// a stream of the connection that the node dialled (cloud/hub), or to the hub that
// holds the node. It never looks into what is said, and holds no more of it than a
// stream's window.
package tunnel
