package adm

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/version"
)

func TestAClusterThatIsTooOldIsRefused(t *testing.T) {
	for _, tt := range []struct {
		major, minor string
		good         bool
	}{
		{"1", "30", false}, {"1", "30+", false}, {"1", "31", true}, {"1", "31+", true}, {"1", "37", true}, {"2", "0", true},
		{"", "", true}, // the apiserver will say what it lacks
	} {
		got := checkVersion(&version.Info{Major: tt.major, Minor: tt.minor, GitVersion: "v" + tt.major + "." + tt.minor + ".3"})
		if (got == nil) != tt.good {
			t.Errorf("Kubernetes %s.%s: %v", tt.major, tt.minor, got)
		}
		if got != nil && !strings.Contains(got.Remedy, "1.31 or later") {
			t.Errorf("Kubernetes %s.%s: it does not say which version is needed: %+v", tt.major, tt.minor, got)
		}
	}
}
