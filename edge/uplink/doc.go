// Package uplink keeps the conversation with the hub: it dials, says what the
// node holds, commits the hub's changes to edge/store and only then acknowledges
// them, and drains the store's outbox of reports.
//
// It is the only part of an edge node that notices a cut line. edge/cmd/edgecore
// runs it; edge/pod asks it for tokens (AskToken) and can do without. It never
// looks at a pod, never deletes what the hub did not name, and never gives up:
// Run returns only when its context ends.
//
// session.go (the protocol) and window.go (the order of the reports) are pure;
// uplink.go does for them what needs a line, a disk or a clock.
package uplink
