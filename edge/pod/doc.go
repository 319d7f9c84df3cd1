// Package pod runs the node's pods: one worker for each pod UID observes what the runtime holds, asks
// edge/plan what to do, does it, and observes again. It owns everything that happens between a pod in
// the store and containers that run: the workers, image pulls and their back-off, the environment, hooks,
// service account tokens, events, what is remembered of a pod beyond a reboot (record), and the status
// that is reported.
//
// edge/cmd/edgecore makes a Manager and runs it; localstatus asks it for a Snapshot. It never speaks CRI
// (edge/runtime does), never decides by the wall clock, and never waits for the cloud: whatever it needs
// is in edge/store. A worker without anything to do has no goroutine; exits, changes and timers wake it.
package pod
