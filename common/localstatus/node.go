package localstatus

import (
	"net/http"
	"time"
)

// NodePath is where the node's own API, that of a kubelet, is served on SocketName:
// NodePath/containerLogs/... and so on.
const NodePath = "/node"

// NodeRoute serves the node's API. Its streams (a followed log, a shell) last as long as
// they like.
func NodeRoute(api http.Handler) Route {
	api = http.StripPrefix(NodePath, api)
	return Route{Pattern: NodePath + "/", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Time{}); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		api.ServeHTTP(w, r)
	})}
}
