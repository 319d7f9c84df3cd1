// Package mapper is the half of a mapper that is the same for every protocol: it
// registers with edgecore, serves KubeEdge's device management interface on a
// socket of its own, hands devices to a Driver, and carries what the Driver reads
// to edgecore, in order and with bounded memory. The programs edge/cmd/*mapper run
// it with a Driver from a package below this one: modbus is there; Bluetooth GATT
// has its place beside it. It knows no protocol, and edgecore does not link it.
package mapper
