// Package store owns what an edge node must remember when the power goes: the
// objects that the hub sent, the reports that the hub has not accepted yet, each
// pod's own memory (restart counts and the like), service account tokens, and a
// few settings. It is one SQLite file written through GORM by one connection.
//
// A call that returned nil is on the disk (WAL, synchronous=FULL): edge/uplink
// acknowledges after Apply, never before. edge/pod reads its pods here and
// nowhere else, so a node starts its pods with no line to the cloud.
//
// A database that cannot be read is set aside, never deleted, and the last good
// copy takes its place; see Open. The store knows nothing of the network, never
// decides what should run, and deletes an object only when Apply names its uid.
package store
