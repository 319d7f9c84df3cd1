package node

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// OfflineReady is True when the node would come back from a reboot without the cloud, all
// its pods with it; edge/outage judges that. Schedulers know nothing of it.
const OfflineReady corev1.NodeConditionType = "OfflineReady"

// pressureEnds is how long a shortage must be over before it is said to be: the
// scheduler should not be called back and forth.
const pressureEnds = 5 * time.Minute

// seen is what one look at the machine showed.
type seen struct {
	runtime    runtime.Info
	runtimeErr error
	available  int64 // memory, bytes
	threads    int64
	threadsMax int64
	disk       disk
	diskErr    error
	outage     outage
}

// outage is what Options.Outage said.
type outage struct {
	ready, known    bool
	reason, message string
}

// conditions turns looks at the machine into node conditions; it remembers since
// when each holds.
type conditions struct {
	machine machine
	current map[corev1.NodeConditionType]corev1.NodeCondition
	short   map[corev1.NodeConditionType]time.Time // when the shortage was last seen; monotonic
}

func newConditions(m machine, before []corev1.NodeCondition) *conditions {
	c := &conditions{machine: m, current: map[corev1.NodeConditionType]corev1.NodeCondition{}, short: map[corev1.NodeConditionType]time.Time{}}
	for _, b := range before {
		c.current[b.Type] = b
	}
	return c
}

// judge returns the conditions in a fixed order, Ready last. Their heartbeat is now, the time
// of their last transition that of the last change of the status.
func (c *conditions) judge(s seen, now time.Time) []corev1.NodeCondition {
	d, m := s.disk, c.machine
	judged := []corev1.NodeCondition{
		c.pressure(corev1.NodeMemoryPressure, s.available < m.memoryReserve(), now,
			"MemoryShort", fmt.Sprintf("less than %d MiB of memory are available", m.memoryReserve()>>20), "MemoryAvailable", "the node has enough memory"),
		c.pressure(corev1.NodeDiskPressure, s.diskErr == nil && (d.free < d.reserve() || d.inodes > 0 && d.inodesFree < d.inodes/20), now,
			"DiskShort", fmt.Sprintf("the data directory's file system has less than %d MiB or a twentieth of its inodes left", d.reserve()>>20), "DiskAvailable", "the node has enough disk"),
		c.pressure(corev1.NodePIDPressure, s.threadsMax > 0 && s.threads > s.threadsMax-s.threadsMax/10, now,
			"ProcessIDsShort", "less than a tenth of the process ids is left", "ProcessIDsAvailable", "the node has enough process ids"),
	}
	before, hadBefore := c.current[OfflineReady]
	switch {
	case s.outage.known:
		judged = append(judged, c.set(OfflineReady, s.outage.ready, s.outage.reason, s.outage.message, now))
	case hadBefore: // of an edgecore that has just started: what it was told last holds until it has looked
		judged = append(judged, c.set(OfflineReady, before.Status == corev1.ConditionTrue, before.Reason, before.Message, now))
	}
	return append(judged, c.ready(s, now))
}

func (c *conditions) ready(s seen, now time.Time) corev1.NodeCondition {
	switch {
	case s.runtimeErr != nil:
		return c.set(corev1.NodeReady, false, "ContainerRuntimeDown", s.runtimeErr.Error(), now)
	case !s.runtime.Ready:
		return c.set(corev1.NodeReady, false, "ContainerRuntimeNotReady", orElse(s.runtime.Reason, "the container runtime says that it is not ready"), now)
	case !s.runtime.NetworkReady:
		return c.set(corev1.NodeReady, false, "NetworkNotReady", orElse(s.runtime.Reason, "the container runtime has no CNI configuration"), now)
	case s.diskErr != nil:
		return c.set(corev1.NodeReady, false, "DataDirUnreadable", s.diskErr.Error(), now)
	}
	return c.set(corev1.NodeReady, true, "EdgecoreReady", "edgecore is ready", now)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func (c *conditions) pressure(t corev1.NodeConditionType, short bool, now time.Time, badReason, bad, goodReason, good string) corev1.NodeCondition {
	if short {
		c.short[t] = now
	} else if last, ok := c.short[t]; ok && now.Sub(last) < pressureEnds {
		short = true
	}
	if short {
		return c.set(t, true, badReason, bad, now)
	}
	return c.set(t, false, goodReason, good, now)
}

func (c *conditions) set(t corev1.NodeConditionType, is bool, reason, message string, now time.Time) corev1.NodeCondition {
	status := corev1.ConditionFalse
	if is {
		status = corev1.ConditionTrue
	}
	before, known := c.current[t]
	at := before.LastTransitionTime
	if !known || before.Status != status {
		at = metav1.NewTime(now.Truncate(time.Second))
	}
	n := corev1.NodeCondition{Type: t, Status: status, Reason: reason, Message: message,
		LastHeartbeatTime: metav1.NewTime(now.Truncate(time.Second)), LastTransitionTime: at}
	c.current[t] = n
	return n
}
