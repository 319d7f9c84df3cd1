package e2e

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/tests/scene"
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

// Two nodes lose their line at the same moment. On the one without autonomy the
// real taint eviction takes the hasty pod away, which proves that on the other it
// had every chance to.
func TestAutonomyKeepsPodsOfALostNodeUnlessItIsOff(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	kept := s.Node("auto-on", world.NodeOptions{})
	plain := s.Node("auto-off", world.NodeOptions{})
	// Where most of the nodes are silent, the controller takes it for its own
	// fault and evicts nobody.
	for i := range 3 {
		s.Node(fmt.Sprintf("auto-witness-%d", i), world.NodeOptions{})
	}
	patch := []byte(`{"metadata":{"annotations":{"holdfast.io/autonomy":"off"}}}`)
	_, err := s.Client.CoreV1().Nodes().Patch(s.Ctx, plain.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	s.Must(err)
	s.Start("kept", kept, hasty)
	s.Start("normal", kept, nil)
	s.Start("evicted", plain, hasty)
	s.When("evicted", "with its own toleration of five seconds", func(p *corev1.Pod) bool {
		for _, tol := range p.Spec.Tolerations {
			if tol.Effect == corev1.TaintEffectNoExecute && (tol.TolerationSeconds == nil || *tol.TolerationSeconds != 5) {
				return false
			}
		}
		return true
	})

	s.Must(kept.Cut())
	s.Must(plain.Cut())
	s.NodeTurns(kept, corev1.ConditionUnknown)
	s.When("evicted", "marked for deletion by the taint eviction", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	for _, name := range []string{"kept", "normal"} {
		if p := s.Get(name); p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
			t.Errorf("pod %s on the lost node is %s, deleted %v; want Running", name, p.Status.Phase, p.DeletionTimestamp)
		}
	}

	s.Must(kept.Mend())
	s.NodeTurns(kept, corev1.ConditionTrue)
	s.ReadyAfter("kept", 0)
	s.ReadyAfter("normal", 0)
	s.Must(plain.Mend())
	s.Gone("evicted")
}

func TestANodeReadsAndWritesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	mine := s.Node("authz-mine", world.NodeOptions{})
	other := s.Node("authz-other", world.NodeOptions{})
	for _, name := range []string{"mine", "other"} {
		_, err := s.Client.CoreV1().Secrets(s.NS).Create(s.Ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"k": name}}, metav1.CreateOptions{})
		s.Must(err)
	}
	withSecret := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}}}
		}
	}
	s.Start("mine", mine, withSecret("mine"))
	theirs := s.Start("other", other, withSecret("other"))

	as, err := mine.Kubernetes()
	s.Must(err)
	if _, err := as.CoreV1().Secrets(s.NS).Get(s.Ctx, "mine", metav1.GetOptions{}); err != nil {
		t.Errorf("the node may not read its own pod's secret: %v", err)
	}
	if _, err := as.CoreV1().Secrets(s.NS).Get(s.Ctx, "other", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("reading another node's secret: %v, want forbidden", err)
	}
	if _, err := as.CoreV1().Secrets("holdfast-system").List(s.Ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing Holdfast's secrets: %v, want forbidden", err)
	}
	patch := []byte(`{"status":{"message":"mine now"}}`)
	if _, err := as.CoreV1().Pods(s.NS).Patch(s.Ctx, theirs.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); !apierrors.IsForbidden(err) {
		t.Errorf("writing the status of another node's pod: %v, want forbidden", err)
	}
	if _, err := as.CoreV1().Nodes().Patch(s.Ctx, other.Name, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("labelling another node: %v, want forbidden", err)
	}
}
