// Package route carries application messages between the node's broker and the
// cloud by the Routes in the store: it says which topics are wanted, keeps what is
// published there until the hub has it, within each route's bound, and says where
// the cloud may publish. edge/mqtt offers it messages, edge/uplink drains it. What
// it drops for want of room it counts and reports.
package route
