// Package outage answers one question: would this node, with every pod that it runs now,
// come back from a reboot without the cloud? It looks at what the node holds (images,
// objects, tokens, volumes, database, clock, certificate) and at what starts it, names
// what is amiss with the reason and the remedy, and turns that into the Node condition
// OfflineReady. It also pins the images that the pods need.
//
// edge/cmd/edgecore runs it; edge/node reports the condition, and `holdfast doctor` asks
// for a look on the spot. Judging is pure (Judge) and apart from gathering (Checker).
// Nothing here starts, stops or deletes anything, and nothing depends on the outcome: a
// node that is not ready runs its pods all the same.
package outage
