package main

import (
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/profiling"
)

// profiles are Go's profiles on the local socket, where the config wants them.
func profiles(cfg config.Edge) []localstatus.Route {
	if !cfg.Profiling {
		return nil
	}
	return []localstatus.Route{{Pattern: profiling.Path, Handler: profiling.Handler()}}
}
