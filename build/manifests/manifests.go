// Package manifests holds the objects that Holdfast needs in a cluster: its
// namespace, what cloudcore is and what it may do, and the definitions of devices,
// their models and routes. `holdfast init` applies them; `kubectl apply -f
// build/manifests` does the same by hand. It holds YAML and no logic.
package manifests

import "embed"

// Files are the manifests, one or more objects a file.
//
//go:embed *.yaml
var Files embed.FS
