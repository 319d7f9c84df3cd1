package report

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// decodePod reads a payload that must name a pod.
func decodePod(payload []byte) (*corev1.Pod, error) {
	p := new(corev1.Pod)
	if err := p.Unmarshal(payload); err != nil {
		return nil, fmt.Errorf("decode the pod of a report: %w: %w", err, ErrRejected)
	}
	if p.Name == "" || p.Namespace == "" || p.UID == "" {
		return nil, fmt.Errorf("report about pod %q/%q with uid %q: %w: name, namespace and uid are needed", p.Namespace, p.Name, p.UID, ErrRejected)
	}
	return p, nil
}

// current reads the pod that a report is about. cloudcore reads it itself: the
// Node authorizer answers "forbidden" for a pod that is gone, and a report about
// a pod that is gone must be told from one that a node may not make.
func (w *Writer) current(ctx context.Context, node string, of *corev1.Pod) (*corev1.Pod, error) {
	p, err := w.client.CoreV1().Pods(of.Namespace).Get(ctx, of.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("pod %s/%s (uid %s) is gone: %w", of.Namespace, of.Name, of.UID, ErrNothingLeft)
	case err != nil:
		return nil, fmt.Errorf("read pod %s/%s: %w", of.Namespace, of.Name, err)
	case p.UID != of.UID:
		return nil, fmt.Errorf("pod %s/%s (uid %s) is gone, another has its name: %w", of.Namespace, of.Name, of.UID, ErrNothingLeft)
	case p.Spec.NodeName != node:
		return nil, fmt.Errorf("pod %s/%s (uid %s) is not bound to node %s: %w", of.Namespace, of.Name, of.UID, node, ErrRejected)
	}
	return p, nil
}

// podStatus writes the status of a pod as the node. A status that is there
// already is written all the same under a new epoch: an older session may hold
// another one that it has not written yet, and must find itself fenced.
func (w *Writer) podStatus(ctx context.Context, node string, epoch Epoch, payload []byte) error {
	said, err := decodePod(payload)
	if err != nil {
		return err
	}
	return w.patient(ctx, func(ctx context.Context) error {
		p, err := w.current(ctx, node, said)
		if err != nil {
			return err
		}
		if err := fence(p.Annotations, epoch, "the status of pod "+p.Namespace+"/"+p.Name); err != nil {
			return err
		}
		if ended(p.Status.Phase) && !ended(said.Status.Phase) {
			return fmt.Errorf("pod %s/%s (uid %s) is %s in the cluster already and cannot be %s: %w", p.Namespace, p.Name, p.UID, p.Status.Phase, said.Status.Phase, ErrRejected)
		}
		merged := mergeStatus(p, &said.Status, w.now())
		if !mark(&p.ObjectMeta, epoch) && apiequality.Semantic.DeepEqual(*merged, p.Status) {
			return nil
		}
		p.Status = *merged
		_, err = w.asNode.CoreV1().Pods(p.Namespace).UpdateStatus(as(ctx, node), p, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("pod %s/%s (uid %s) is gone: %w", p.Namespace, p.Name, p.UID, ErrNothingLeft)
		}
		if err != nil {
			return fmt.Errorf("write the status of pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		return nil
	})
}

func ended(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

// ownedByNode says that a condition is one which a kubelet writes; those of all
// other types belong to somebody else and stay as they are.
func ownedByNode(t corev1.PodConditionType) bool {
	switch t {
	case corev1.PodReady, corev1.ContainersReady, corev1.PodInitialized, corev1.PodReadyToStartContainers,
		corev1.PodResizePending, corev1.PodResizeInProgress:
		return true
	}
	return false
}

// mergeStatus is the pod's status after a report: what the node says, with what
// is the cloud's own kept, and with times that make sense.
func mergeStatus(p *corev1.Pod, said *corev1.PodStatus, now time.Time) *corev1.PodStatus {
	s := said.DeepCopy()
	was := &p.Status
	s.QOSClass = was.QOSClass
	s.NominatedNodeName = was.NominatedNodeName
	s.ResourceClaimStatuses = was.ResourceClaimStatuses
	if was.StartTime != nil {
		s.StartTime = was.StartTime
	} else {
		s.StartTime = plausible(s.StartTime, p, now)
	}
	var conditions []corev1.PodCondition
	for _, c := range s.Conditions {
		old := condition(was.Conditions, c.Type)
		switch {
		case !ownedByNode(c.Type) && old != nil:
			c = *old
		case old != nil && old.Status == c.Status:
			c.LastTransitionTime = old.LastTransitionTime
			c.LastProbeTime = old.LastProbeTime
		default:
			c.LastTransitionTime = *plausible(&c.LastTransitionTime, p, now)
			c.LastProbeTime = metav1.Time{}
		}
		conditions = append(conditions, c)
	}
	for _, c := range was.Conditions {
		if !ownedByNode(c.Type) && condition(conditions, c.Type) == nil {
			conditions = append(conditions, c)
		}
	}
	s.Conditions = conditions
	if len(p.Spec.ReadinessGates) > 0 {
		// The edge is not told of gates, which controllers in the cloud open.
		withReady(p, s, now)
	}
	return s
}

// plausible replaces a time before the pod or after now: the clock of an edge
// is not trusted.
func plausible(t *metav1.Time, p *corev1.Pod, now time.Time) *metav1.Time {
	if t == nil || t.Time.Before(p.CreationTimestamp.Time) || t.After(now) {
		n := metav1.NewTime(now).Rfc3339Copy()
		return &n
	}
	return t
}

func condition(all []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range all {
		if all[i].Type == t {
			return &all[i]
		}
	}
	return nil
}

// withReady sets Ready to what ContainersReady and the readiness gates say, and
// tells whether that changed anything.
func withReady(p *corev1.Pod, s *corev1.PodStatus, now time.Time) bool {
	containers, ready := condition(s.Conditions, corev1.ContainersReady), condition(s.Conditions, corev1.PodReady)
	if containers == nil || ready == nil {
		return false
	}
	status, reason, message := containers.Status, containers.Reason, containers.Message
	for _, g := range p.Spec.ReadinessGates {
		if c := condition(s.Conditions, g.ConditionType); status == corev1.ConditionTrue && (c == nil || c.Status != corev1.ConditionTrue) {
			status, reason = corev1.ConditionFalse, "ReadinessGatesNotReady"
			message = fmt.Sprintf("the status of pod readiness gate %q is not \"True\"", g.ConditionType)
		}
	}
	if ready.Status == status {
		return false
	}
	ready.Status, ready.Reason, ready.Message = status, reason, message
	ready.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	return true
}

// NeedsReady says that a pod's Ready condition is not what its containers and
// gates say: the node lifecycle controller sets it to False when a node falls
// silent, and an edge that comes back does not repeat a status that has not
// changed. It must be asked only of nodes that are heard and Ready.
func NeedsReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
		return false
	}
	s := p.Status.DeepCopy()
	return withReady(p, s, time.Time{})
}

// RestoreReady writes the Ready condition of a pod as the node.
func (w *Writer) RestoreReady(ctx context.Context, node string, epoch Epoch, pod *corev1.Pod) error {
	return w.guarded(ctx, node, func(ctx context.Context) error {
		return w.patient(ctx, func(ctx context.Context) error {
			p, err := w.current(ctx, node, pod)
			if err != nil || !NeedsReady(p) {
				return err
			}
			if err := fence(p.Annotations, epoch, "condition Ready of pod "+p.Namespace+"/"+p.Name); err != nil {
				return err
			}
			mark(&p.ObjectMeta, epoch)
			withReady(p, &p.Status, w.now())
			if _, err = w.asNode.CoreV1().Pods(p.Namespace).UpdateStatus(as(ctx, node), p, metav1.UpdateOptions{}); err != nil {
				return fmt.Errorf("set condition Ready of pod %s/%s: %w", p.Namespace, p.Name, err)
			}
			return nil
		})
	})
}

// podGone deletes a pod of which nothing is left on the node, as the node.
func (w *Writer) podGone(ctx context.Context, node string, payload []byte) error {
	said, err := decodePod(payload)
	if err != nil {
		return err
	}
	return w.patient(ctx, func(ctx context.Context) error {
		p, err := w.current(ctx, node, said)
		if err != nil {
			return err
		}
		if p.DeletionTimestamp == nil {
			return fmt.Errorf("pod %s/%s (uid %s) is reported as gone, but nobody has deleted it: %w", p.Namespace, p.Name, p.UID, ErrRejected)
		}
		options := metav1.NewDeleteOptions(0)
		options.Preconditions = metav1.NewUIDPreconditions(string(p.UID))
		err = w.asNode.CoreV1().Pods(p.Namespace).Delete(as(ctx, node), p.Name, *options)
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		return nil
	})
}

// Token asks for a service account token that is bound to a pod, as the node.
func (w *Writer) Token(ctx context.Context, node string, ask *wire.TokenAsk) *wire.TokenAnswer {
	answer := &wire.TokenAnswer{Id: ask.GetId()}
	err := w.patient(as(ctx, node), func(ctx context.Context) error { return w.token(ctx, ask, answer) })
	answer.Code, answer.Message = result(err)
	answer.Message = brief(answer.Message)
	if apierrors.IsNotFound(err) {
		answer.Code = wire.ResultCode_RESULT_REJECTED
	}
	answer.HubTimeUnixMs = w.now().UnixMilli()
	return answer
}
