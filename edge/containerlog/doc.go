// Package containerlog reads the logs of containers as the runtime writes them (the
// CRI log format) and edge/runtime rotates them: the present file, and the earlier
// ones beside it, compressed ones too. edge/stream calls it for `kubectl logs`.
//
// It holds some tens of KiB for each reader, however long lines and files are, and
// waits for whoever does not read what it writes. It never writes to a log, and
// never asks the runtime, which imports this room for the names of rotated files: whether a container still runs is told by the caller.
package containerlog
