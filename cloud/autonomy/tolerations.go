package autonomy

import (
	"encoding/json"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/cloud/roster"
)

// silentTaints are what the node lifecycle controller puts on a node that it
// does not hear or that is not ready.
func silentTaints() [2]string {
	return [2]string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable}
}

// tolerates says that a toleration bears a NoExecute taint of that key.
func tolerates(t corev1.Toleration, key string) bool {
	if t.Effect != "" && t.Effect != corev1.TaintEffectNoExecute {
		return false
	}
	if t.Key == "" {
		return t.Operator == corev1.TolerationOpExists
	}
	// The two taints have no value.
	return t.Key == key && (t.Operator == corev1.TolerationOpExists || t.Value == "")
}

// same says that two tolerations differ in their seconds at most: what the
// apiserver, too, takes for one toleration.
func same(a, b corev1.Toleration) bool {
	return a.Key == b.Key && a.Operator == b.Operator && a.Value == b.Value && a.Effect == b.Effect
}

// kept is the change that lets a pod stay on a silent node for ever, nil if it
// may already. The shortest of all matching tolerations counts, so that each
// loses its seconds, also one that matches every taint.
func kept(p *corev1.Pod) *change {
	tolerations := slices.Clone(p.Spec.Tolerations)
	was := remembered(p)
	changed := false
	for i, t := range tolerations {
		if t.TolerationSeconds == nil || !tolerates(t, corev1.TaintNodeNotReady) && !tolerates(t, corev1.TaintNodeUnreachable) {
			continue
		}
		if !slices.ContainsFunc(was, func(o corev1.Toleration) bool { return same(o, t) }) {
			was = append(was, t)
		}
		tolerations[i].TolerationSeconds = nil
		changed = true
	}
	for _, key := range silentTaints() {
		if slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool { return tolerates(t, key) }) {
			continue
		}
		added := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}
		tolerations = append(tolerations, added)
		// The apiserver lets nobody remove a toleration. One of no seconds is
		// as good as none.
		added.TolerationSeconds = new(int64)
		was = append(was, added)
		changed = true
	}
	if !changed {
		return nil
	}
	b, err := json.Marshal(was)
	if err != nil {
		return nil // tolerations always encode
	}
	text := string(b)
	return &change{tolerations, &text}
}

// restored is the change that gives a pod its own seconds again, nil if it has
// them.
func restored(p *corev1.Pod) *change {
	if _, ok := p.Annotations[roster.AnnotationTolerations]; !ok {
		return nil
	}
	was := remembered(p)
	tolerations := slices.Clone(p.Spec.Tolerations)
	for i, t := range tolerations {
		for _, o := range was {
			if t.TolerationSeconds == nil && same(o, t) {
				tolerations[i].TolerationSeconds = o.TolerationSeconds
			}
		}
	}
	return &change{tolerations, nil}
}

// remembered is what the annotation says. One that somebody has spoiled says
// nothing: the pod then keeps what it has.
func remembered(p *corev1.Pod) []corev1.Toleration {
	var was []corev1.Toleration
	if json.Unmarshal([]byte(p.Annotations[roster.AnnotationTolerations]), &was) != nil {
		return nil
	}
	return was
}
