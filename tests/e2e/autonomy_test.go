package e2e

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/tests/world"
)

// hasty makes a pod tolerate a lost node for five seconds only.
func hasty(p *corev1.Pod) {
	seconds := int64(5)
	for _, key := range []string{corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady} {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
		})
	}
}

func (s *scene) setAutonomy(node, value string) {
	s.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"holdfast.io/autonomy":%q}}}`, value)
	_, err := s.client.CoreV1().Nodes().Patch(s.ctx, node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	s.must(err)
}

// Two nodes lose their line at the same moment. On the one without autonomy the
// real taint eviction takes the hasty pod away, which proves that on the other it
// had every chance to.
func TestAutonomyKeepsPodsOfALostNodeUnlessItIsOff(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	kept := s.node("auto-on", world.NodeOptions{})
	plain := s.node("auto-off", world.NodeOptions{})
	s.setAutonomy(plain.Name, "off")
	s.run("kept", kept, hasty)
	s.run("normal", kept, nil)
	s.run("evicted", plain, hasty)
	s.when("evicted", "with its own toleration of five seconds", func(p *corev1.Pod) bool {
		for _, tol := range p.Spec.Tolerations {
			if tol.Effect == corev1.TaintEffectNoExecute && (tol.TolerationSeconds == nil || *tol.TolerationSeconds != 5) {
				return false
			}
		}
		return true
	})

	s.must(kept.Cut())
	s.must(plain.Cut())
	s.nodeTurns(kept, corev1.ConditionUnknown)
	s.when("evicted", "marked for deletion by the taint eviction", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	for _, name := range []string{"kept", "normal"} {
		if p := s.get(name); p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
			t.Errorf("pod %s on the lost node is %s, deleted %v; want Running", name, p.Status.Phase, p.DeletionTimestamp)
		}
	}

	s.must(kept.Mend())
	s.nodeTurns(kept, corev1.ConditionTrue)
	s.readyAfter("kept", 0)
	s.readyAfter("normal", 0)
	s.must(plain.Mend())
	s.gone("evicted")
}

func TestANodeReadsAndWritesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	mine := s.node("authz-mine", world.NodeOptions{})
	other := s.node("authz-other", world.NodeOptions{})
	for _, name := range []string{"mine", "other"} {
		_, err := s.client.CoreV1().Secrets(s.ns).Create(s.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"k": name}}, metav1.CreateOptions{})
		s.must(err)
	}
	withSecret := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}}}
		}
	}
	s.run("mine", mine, withSecret("mine"))
	theirs := s.run("other", other, withSecret("other"))

	as, err := mine.Kubernetes()
	s.must(err)
	if _, err := as.CoreV1().Secrets(s.ns).Get(s.ctx, "mine", metav1.GetOptions{}); err != nil {
		t.Errorf("the node may not read its own pod's secret: %v", err)
	}
	if _, err := as.CoreV1().Secrets(s.ns).Get(s.ctx, "other", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("reading another node's secret: %v, want forbidden", err)
	}
	if _, err := as.CoreV1().Secrets("holdfast-system").List(s.ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing Holdfast's secrets: %v, want forbidden", err)
	}
	patch := []byte(`{"status":{"message":"mine now"}}`)
	if _, err := as.CoreV1().Pods(s.ns).Patch(s.ctx, theirs.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); !apierrors.IsForbidden(err) {
		t.Errorf("writing the status of another node's pod: %v, want forbidden", err)
	}
	if _, err := as.CoreV1().Nodes().Patch(s.ctx, other.Name, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("labelling another node: %v, want forbidden", err)
	}
}
