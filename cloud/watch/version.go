package watch

import "k8s.io/apimachinery/pkg/util/resourceversion"

// order compares two resource versions of one kind: -1, 0 or 1. They are numbers
// on every server that conforms to Kubernetes 1.35; ok is false for others, and
// then the caller must read again instead of guessing.
func order(a, b string) (cmp int, ok bool) {
	cmp, err := resourceversion.CompareResourceVersion(a, b)
	return cmp, err == nil
}

// older says that a is known to be older than b.
func older(a, b string) bool {
	cmp, ok := order(a, b)
	return ok && cmp < 0
}
