// Package cross shows that what is built for a Raspberry Pi runs there: it builds
// edgecore and holdfast for arm64 and armv7 with `make cross` and runs them under
// qemu's user emulation. It has tests only.
package cross
