package runtime

import (
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel's limits and the kubelet's scale (pkg/kubelet/cm/helpers_linux.go).
const (
	minShares     = 2
	maxShares     = 262144
	sharesPerCPU  = 1024
	quotaPeriod   = 100000 // microseconds
	minQuota      = 1000   // microseconds
	oomGuaranteed = -997
	oomBestEffort = 1000
)

// shares converts thousandths of a CPU into cgroup v1 shares.
func shares(milliCPU int64) int64 {
	return min(max(milliCPU*sharesPerCPU/1000, minShares), maxShares)
}

// quota converts thousandths of a CPU into microseconds of CPU time in a period; 0 is no limit.
func quota(milliCPU int64) int64 {
	if milliCPU == 0 {
		return 0
	}
	return max(milliCPU*quotaPeriod/1000, minQuota)
}

// weight converts shares into cgroup v2's cpu.weight (1 to 10000).
func weight(shares int64) int64 { return 1 + (shares-minShares)*9999/(maxShares-minShares) }

// QOS is the pod's class, as Kubernetes defines it: what its status says, or what its containers' requests and limits
// make of it.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	guaranteed, any := true, false
	look := func(res *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			req, lim := res.Requests[name], res.Limits[name]
			if !req.IsZero() || !lim.IsZero() {
				any = true
			}
			if lim.IsZero() || (!req.IsZero() && req.Cmp(lim) != 0) {
				guaranteed = false
			}
		}
	}
	if r := pod.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		look(r)
	} else {
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				look(&list[i].Resources)
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

// containerResources are the limits of one container, as the kubelet computes them.
func (r *Runtime) containerResources(pod *corev1.Pod, c *corev1.Container) *cri.LinuxContainerResources {
	cpuLimit, memLimit := c.Resources.Limits.Cpu(), c.Resources.Limits.Memory()
	if p := pod.Spec.Resources; p != nil {
		if cpuLimit.IsZero() {
			cpuLimit = p.Limits.Cpu()
		}
		if memLimit.IsZero() {
			memLimit = p.Limits.Memory()
		}
	}
	cpu := cpuLimit // a limit without a request is a request too
	if q, ok := c.Resources.Requests[corev1.ResourceCPU]; ok {
		cpu = &q
	}
	res := &cri.LinuxContainerResources{
		CpuShares:          shares(cpu.MilliValue()),
		CpuPeriod:          quotaPeriod,
		CpuQuota:           quota(cpuLimit.MilliValue()),
		MemoryLimitInBytes: memLimit.Value(),
		OomScoreAdj:        OOMScoreAdj(pod, c, r.memoryTotal),
	}
	if r.swapAccounting {
		// No swap: the same limit for memory and memory with swap.
		res.MemorySwapLimitInBytes = res.MemoryLimitInBytes
	}
	if r.unified {
		// When the kernel runs out of the container's memory it kills the whole container, not one of its processes.
		res.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return res
}

// OOMScoreAdj is the container's oom_score_adj on a node with so many bytes of memory, by the kubelet's formula: the more
// of the node's memory a container asked for, the later it is killed.
func OOMScoreAdj(pod *corev1.Pod, c *corev1.Container, memory int64) int64 {
	if pod.Spec.PriorityClassName == "system-node-critical" {
		return oomGuaranteed
	}
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	request := c.Resources.Requests.Memory().Value()
	if p := pod.Spec.Resources; p != nil && len(p.Requests) > 0 {
		request += spareMemoryShare(pod)
	}
	adj := 1000 - 1000*request/memory
	if isSidecar(pod, c.Name) {
		least := int64(-1)
		for i := range pod.Spec.Containers {
			if m := pod.Spec.Containers[i].Resources.Requests.Memory().Value(); least < 0 || m < least {
				least = m
			}
		}
		adj = min(adj, 1000-1000*max(least, 0)/memory)
	}
	if adj < 1000+oomGuaranteed {
		return 1000 + oomGuaranteed
	}
	if adj == oomBestEffort {
		return adj - 1
	}
	return adj
}

// spareMemoryShare is what one container gets of the memory that the pod as a whole asked for beyond its containers.
func spareMemoryShare(pod *corev1.Pod) int64 {
	spare, n := pod.Spec.Resources.Requests.Memory().Value(), int64(0)
	for i := range pod.Spec.Containers {
		spare -= pod.Spec.Containers[i].Resources.Requests.Memory().Value()
		n++
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; isSidecar(pod, c.Name) {
			spare -= c.Resources.Requests.Memory().Value()
			n++
		}
	}
	if spare <= 0 || n == 0 {
		return 0
	}
	return spare / n
}

func isSidecar(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name == name {
			return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}
	}
	return false
}

// podTotal adds up one resource over a pod: everything that runs at the same time, at its highest. declared is false
// when some container leaves the resource open.
func podTotal(pod *corev1.Pod, name corev1.ResourceName, pick func(*corev1.ResourceRequirements) corev1.ResourceList) (total resource.Quantity, declared bool) {
	declared = true
	if r := pod.Spec.Resources; r != nil {
		if q, ok := pick(r)[name]; ok && !q.IsZero() {
			q = q.DeepCopy()
			q.Add(pod.Spec.Overhead[name])
			return q, true
		}
	}
	value := func(c *corev1.Container) resource.Quantity {
		q := pick(&c.Resources)[name]
		if q.IsZero() {
			declared = false
		}
		return q.DeepCopy()
	}
	for i := range pod.Spec.Containers {
		total.Add(value(&pod.Spec.Containers[i]))
	}
	var sidecars, highest resource.Quantity
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		q := value(c)
		if isSidecar(pod, c.Name) {
			total.Add(q)
			sidecars.Add(q)
			q = sidecars.DeepCopy()
		} else {
			q.Add(sidecars)
		}
		if q.Cmp(highest) > 0 {
			highest = q
		}
	}
	if highest.Cmp(total) > 0 {
		total = highest
	}
	if !total.IsZero() {
		total.Add(pod.Spec.Overhead[name])
	}
	return total, declared
}

func requests(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Requests }
func limits(r *corev1.ResourceRequirements) corev1.ResourceList   { return r.Limits }

// podResources are the limits of a pod as a whole: a limit holds only when every container has one.
func podResources(pod *corev1.Pod) *cri.LinuxContainerResources {
	if QOS(pod) == corev1.PodQOSBestEffort {
		return &cri.LinuxContainerResources{CpuShares: minShares}
	}
	cpuRequest, _ := podTotal(pod, corev1.ResourceCPU, requests)
	cpuLimit, cpuDeclared := podTotal(pod, corev1.ResourceCPU, limits)
	memLimit, memDeclared := podTotal(pod, corev1.ResourceMemory, limits)
	if cpuRequest.IsZero() {
		cpuRequest = cpuLimit
	}
	res := &cri.LinuxContainerResources{CpuShares: shares(cpuRequest.MilliValue())}
	if cpuDeclared {
		res.CpuPeriod, res.CpuQuota = quotaPeriod, quota(cpuLimit.MilliValue())
	}
	if memDeclared {
		res.MemoryLimitInBytes = memLimit.Value()
	}
	return res
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
