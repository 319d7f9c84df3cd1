package tunnel

import (
	"net/http"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
)

// attributes are the rights of which a request needs one, as a kubelet asks for
// them: a verb by the HTTP method, on a subresource of the node by the path. Where
// Kubernetes has given a path a subresource of its own, nodes/proxy serves as well.
func attributes(r *http.Request, node string) []authorizationv1.ResourceAttributes {
	verb := map[string]string{
		http.MethodGet: "get", http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
	}[r.Method]
	var of []authorizationv1.ResourceAttributes
	for _, subresource := range subresources(r.URL.Path) {
		of = append(of, authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: subresource, Name: node})
	}
	return of
}

func subresources(path string) []string {
	below := func(roots ...string) bool {
		return slices.ContainsFunc(roots, func(root string) bool { return path == root || strings.HasPrefix(path, root+"/") })
	}
	switch {
	case below("/stats"):
		return []string{"stats"}
	case below("/metrics"):
		return []string{"metrics"}
	case below("/logs"):
		return []string{"log"}
	case below("/checkpoint"):
		return []string{"checkpoint"}
	case below("/statusz"):
		return []string{"statusz"}
	case below("/flagz"):
		return []string{"configz"}
	case below("/healthz"):
		return []string{"healthz", "proxy"}
	case below("/configz"):
		return []string{"configz", "proxy"}
	case below("/pods", "/runningpods", "/runningPods"):
		return []string{"pods", "proxy"}
	}
	return []string{"proxy"}
}

// kind is the first part of a request's path where it is one that a kubelet has, for
// metrics.
func kind(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if slices.Contains(kinds, first) {
		return first
	}
	return "other"
}

var kinds = []string{"containerLogs", "exec", "attach", "portForward", "run", "logs", "stats", "metrics", "pods", "healthz", "configz"}
