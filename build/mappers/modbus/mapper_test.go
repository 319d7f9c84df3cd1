package modbus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// TestTheManifestIsADaemonSetThatFitsTheProgram: no unknown field, not root, and its
// socket in the folder that it mounts.
func TestTheManifestIsADaemonSetThatFitsTheProgram(t *testing.T) {
	b, err := os.ReadFile("mapper.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var set appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(b, &set); err != nil {
		t.Fatal(err)
	}
	pod := set.Spec.Template.Spec
	if pod.SecurityContext.RunAsNonRoot == nil || !*pod.SecurityContext.RunAsNonRoot || *pod.SecurityContext.RunAsGroup != 0 {
		t.Error("the mapper shall run with group 0, and not as root")
	}
	mount, volume := pod.Containers[0].VolumeMounts[0].MountPath, pod.Volumes[0].HostPath.Path
	if mount != volume {
		t.Errorf("%s is mounted at %s: edgecore calls the mapper back by the same path", volume, mount)
	}
	for _, arg := range pod.Containers[0].Args {
		_, path, _ := strings.Cut(arg, "=")
		if rel, err := filepath.Rel(mount, path); err != nil || strings.HasPrefix(rel, "..") {
			t.Errorf("%s is not below %s", arg, mount)
		}
	}
}
