// Package dmi serves mappers: programs on the node that speak to devices by a
// protocol of their own. It answers KubeEdge's device management interface on a
// unix socket, hands what mappers read to edge/device and answers after the commit,
// and tells each mapper on its own socket which devices it serves and what they
// shall be. The main program runs it. It speaks to no device itself, decides
// nothing about values, and a mapper that hangs holds up nobody else.
package dmi
