package pod

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestEveryFieldIsClassified goes through the types, not through a pod: a field that a new version of
// Kubernetes brings must be thought about.
func TestEveryFieldIsClassified(t *testing.T) {
	known := fieldClasses()
	used := map[string]bool{}
	var look func(reflect.Type)
	look = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for i := range typ.NumField() {
			name, inline := jsonName(typ.Field(i))
			if inline {
				look(typ.Field(i).Type)
				continue
			}
			key := typ.Name() + "." + name
			if used[key] {
				continue
			}
			c, ok := known[key]
			if !ok {
				t.Errorf("%s is not classified: honour it, refuse it or tell that it is not honoured", key)
			}
			used[key] = true
			if (c.kind == refused || c.kind == told) && c.why == "" {
				t.Errorf("%s is not honoured and nothing says why", key)
			}
			if c.kind == inside {
				look(typ.Field(i).Type)
			}
		}
	}
	look(reflect.TypeFor[corev1.PodSpec]())
	for key := range known {
		if !used[key] {
			t.Errorf("%s is classified, but there is no such field", key)
		}
	}
}

func TestUnsupportedFieldsAreNamed(t *testing.T) {
	yes, no := true, false
	p := busyboxPod("odd", "true")
	p.Spec.HostUsers = &yes // what happens anyway
	p.Spec.SetHostnameAsFQDN = &yes
	p.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "x"}}},
		{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
	}
	p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestartAllContainers}}
	refusals, notices := judgeSpec(&p.Spec, fieldClasses())
	text := list(refusals)
	for _, want := range []string{"spec.volumes[data].persistentVolumeClaim", "spec.containers[main].restartPolicyRules"} {
		if !strings.Contains(text, want) {
			t.Errorf("refused: %q, want it to name %s", text, want)
		}
	}
	if len(refusals) != 2 {
		t.Errorf("refused: %q, want two fields", text)
	}
	if got := list(notices); !strings.Contains(got, "spec.setHostnameAsFQDN") || len(notices) != 1 {
		t.Errorf("told: %q, want setHostnameAsFQDN alone", got)
	}
	// What somebody adds in order to look into a pod does not stop it.
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "shell",
		Env: []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{}}}}}}}
	if refusals, notices = judgeSpec(&p.Spec, fieldClasses()); len(refusals) != 2 || len(notices) != 2 ||
		!strings.Contains(list(notices), "spec.ephemeralContainers[shell].env[A].valueFrom.fileKeyRef") {
		t.Errorf("refused: %q, told: %q; want the ephemeral container's field told", list(refusals), list(notices))
	}
	p.Spec.HostUsers = &no
	if refusals, _ = judgeSpec(&p.Spec, fieldClasses()); len(refusals) != 3 {
		t.Errorf("refused: %q, want hostUsers among them", list(refusals))
	}
}
