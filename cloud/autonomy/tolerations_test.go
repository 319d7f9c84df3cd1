package autonomy

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

func toleration(key string, op corev1.TolerationOperator, effect corev1.TaintEffect, seconds ...int64) corev1.Toleration {
	t := corev1.Toleration{Key: key, Operator: op, Effect: effect}
	if len(seconds) > 0 {
		t.TolerationSeconds = &seconds[0]
	}
	return t
}

func with(t ...corev1.Toleration) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "d"}, Spec: corev1.PodSpec{Tolerations: t}}
}

// evictedAfter is the node lifecycle controller's rule: the seconds after which
// a NoExecute taint of that key ends a pod; -1 for never.
func evictedAfter(p *corev1.Pod, key string) int64 {
	least, tolerated := int64(-1), false
	for _, t := range p.Spec.Tolerations {
		taint := corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute}
		if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key || t.Operator != corev1.TolerationOpExists && t.Value != taint.Value {
			continue
		}
		tolerated = true
		if t.TolerationSeconds != nil && (least < 0 || *t.TolerationSeconds < least) {
			least = *t.TolerationSeconds
		}
	}
	if !tolerated {
		return 0
	}
	return least
}

func TestAutonomyKeepsEveryPodAndGivesBackWhatItHad(t *testing.T) {
	const notReady, unreachable = corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable
	const exists, noExecute = corev1.TolerationOpExists, corev1.TaintEffectNoExecute
	for name, p := range map[string]*corev1.Pod{
		"the usual 300 s":       with(toleration(notReady, exists, noExecute, 300), toleration(unreachable, exists, noExecute, 300)),
		"5 s":                   with(toleration(notReady, exists, noExecute, 5), toleration(unreachable, exists, noExecute, 5)),
		"nothing":               with(),
		"one of two":            with(toleration(unreachable, exists, noExecute, 7)),
		"a daemon's":            with(toleration(notReady, exists, noExecute), toleration(unreachable, exists, noExecute)),
		"everything for 9 s":    with(toleration("", exists, noExecute, 9)),
		"everything for ever":   with(toleration("", exists, "")),
		"several of one key":    with(toleration(unreachable, exists, noExecute, 60), toleration(unreachable, corev1.TolerationOpEqual, noExecute, 30)),
		"only scheduling":       with(toleration(unreachable, exists, corev1.TaintEffectNoSchedule)),
		"another key, 3 s":      with(toleration("example.test/power", exists, noExecute, 3)),
		"seconds that are zero": with(toleration(notReady, exists, noExecute, 0)),
	} {
		t.Run(name, func(t *testing.T) {
			before := map[string]int64{}
			for _, key := range []string{notReady, unreachable, "example.test/power"} {
				before[key] = evictedAfter(p, key)
			}
			apply := func(c *change) {
				p.Spec.Tolerations = c.tolerations
				p.Annotations = map[string]string{}
				if c.annotation != nil {
					p.Annotations[roster.AnnotationTolerations] = *c.annotation
				}
			}
			original := p.DeepCopy().Spec.Tolerations
			if c := kept(p); c != nil {
				for _, old := range original {
					found := false
					for _, now := range c.tolerations {
						found = found || same(old, now)
					}
					if !found {
						t.Errorf("toleration %v was lost: the apiserver refuses that", old)
					}
				}
				apply(c)
			}
			for _, key := range []string{notReady, unreachable} {
				if s := evictedAfter(p, key); s >= 0 {
					t.Errorf("%s still evicts after %d s: %v", key, s, p.Spec.Tolerations)
				}
			}
			if kept(p) != nil {
				t.Error("a second look changes something again")
			}
			if c := restored(p); c != nil {
				apply(c)
			}
			for key, want := range before {
				if s := evictedAfter(p, key); s != want {
					t.Errorf("restored, %s evicts after %d s, it was %d", key, s, want)
				}
			}
			if restored(p) != nil {
				t.Error("a second restoration changes something again")
			}
		})
	}
}
