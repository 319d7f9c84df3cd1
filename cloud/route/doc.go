// Package route is the cloud's end of Routes (keps/0014-devices.md). It owns how
// messages of nodes reach their endpoint or become Events, one after the other
// (up.go), and the door through which somebody in the cluster publishes at a node
// (down.go). cloud/hub hands it what nodes send and carries what it publishes;
// cloud/watch tells it what Routes there are. It stores no message: a node keeps
// its own until the endpoint has taken them, and who publishes is told whether the
// node's broker has it. It lets nobody in whom the apiserver does not know.
package route
