// Package dmi is the interface between edgecore and the mappers on its node:
// KubeEdge's device management interface, v1beta1, generated from dmi.proto, and
// the way in which free configuration travels in it. edge/dmi serves it, edge/mapper
// is a client of it. It holds messages and their encoding, and makes no connection.
package dmi
