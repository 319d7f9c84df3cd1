// Package modbus reads and writes Modbus devices, by TCP and by RTU frames over TCP:
// what a Device's configuration means (config.go), how values lie in registers
// (codec.go), which registers are read together (plan.go), all three pure; and one
// goroutine for each address that does it (line.go), so that a device which is dead
// delays none at another address. edge/cmd/modbusmapper runs it as the Driver of
// edge/mapper. It never says a value that it has not read.
package modbus
