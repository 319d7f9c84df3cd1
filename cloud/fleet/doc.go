// Package fleet keeps what a hub tells people of the edge nodes (the documents of
// common/fleet): of each node a record of some hundred bytes, fed by the Nodes that
// pass by in cloud/watch and by the hub's sessions; and what costs more (pods,
// events, logs, the leases of other hubs' nodes) it reads when somebody looks.
// cloud/cmd/cloudcore serves it, on a unix socket for root and as a web page for
// whom the apiserver lets. It changes nothing in the cluster, and nothing waits for
// it.
package fleet
