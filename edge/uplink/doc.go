// Package uplink keeps the conversation with the hub: it dials, says what the
// node holds, commits the hub's changes to edge/store and only then acknowledges
// them, and drains the store's outbox of reports.
//
// It is the only part of an edge node that notices a cut line. edge/cmd/edgecore
// runs it; edge/pod asks it for tokens (AskToken) and can do without. It never
// looks at a pod, never deletes what the hub did not name, and never gives up:
// Run returns only when its context ends.
//
// What to do is decided in edge/resume, which is pure; this does for it what needs
// a line, a disk or a clock.
package uplink
