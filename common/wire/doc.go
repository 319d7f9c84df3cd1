// Package wire is the protocol between an edge node and its hub: the messages,
// their limits, and how both sides compute versions and digests of what they
// hold. wire.proto is the document to read. cloud/hub and edge/uplink speak it
// over common/link; nothing here does I/O.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative wire.proto
