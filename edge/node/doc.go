// Package node tells the cluster what this machine is: its Node object with
// capacity, addresses, versions and conditions, as far as /proc, the file system
// and the runtime show them. It looks every StatusInterval and puts a report into
// the store's outbox only when something changed, when the hub was away long
// enough to have given the node up, or when the Node object was deleted.
//
// edge/cmd/edgecore runs it; edge/pod asks it for addresses and capacity. It
// never speaks to the hub itself and never refuses a pod.
package node
