// Package hub accepts edge nodes and holds one session with each
// (keps/0001-protocol.md). It owns the sessions, what was sent and acknowledged,
// and the order of reports. cloud/cmd/cloudcore runs it over a common/link
// acceptor; cloud/watch tells it what a node must hold, cloud/report writes what
// a node says. A node's name is the one in its certificate, whatever its
// messages say. A slow node delays no other, and a node that is not connected
// costs nothing here.
package hub
