//go:build ignore

// Command make wrote dictionary 1 once: `go run make.go > 1.bin`. It is kept to
// show where the bytes come from. The file may never change, whatever the
// Kubernetes types become: see keps/0013-compression.md.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What comes last is cheapest to refer to: what travels most often is there.
func main() {
	var out []byte
	add := func(parts ...interface{ Marshal() ([]byte, error) }) {
		for _, p := range parts {
			b, err := p.Marshal()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			out = append(out, b...)
		}
	}
	out = append(out, claims()...)
	out = append(out, words()...)
	add(probes(), richContainer())
	add(events()...)
	add(configMap(), node(true), node(false), pod(), terminated(), status())
	os.Stdout.Write(out)
}

// claims are what a service account's token says.
func claims() string {
	return `{"alg":"ES256","kid":"","typ":"JWT"}{"alg":"RS256","kid":"` + "\x00" + `{"aud":["https://kubernetes.default.svc.cluster.local","https://kubernetes.default.svc"],"exp":17` +
		`,"iat":17,"iss":"https://kubernetes.default.svc.cluster.local","jti":"","kubernetes.io":{"namespace":"default","node":{"name":"","uid":""},"pod":{"name":"","uid":"` +
		`"},"serviceaccount":{"name":"default","uid":""},"warnafter":17},"nbf":17,"sub":"system:serviceaccount:default:default"}`
}

// words are texts that objects may hold, most of which have no template below.
func words() string {
	return strings.Join([]string{
		"DaemonSet", "StatefulSet", "batch/v1", "Job", "CronJob", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name",
		"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart", "Helm",
		"kubectl.kubernetes.io/restartedAt", "kubectl.kubernetes.io/default-container", "prometheus.io/scrape", "prometheus.io/port", "checksum/config",
		"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/edge", "NoSchedule", "PreferNoSchedule", "topology.kubernetes.io/zone", "topology.kubernetes.io/region", "node.kubernetes.io/memory-pressure", "node.kubernetes.io/disk-pressure", "node.kubernetes.io/pid-pressure", "node.kubernetes.io/unschedulable", "node.kubernetes.io/network-unavailable",
		"/etc/localtime", "/var/run/docker.sock", "/var/log", "/dev", "/sys", "/proc", "/tmp", "/data", "/config", "/etc/ssl/certs", "Directory", "DirectoryOrCreate", "FileOrCreate", "CharDevice", "Socket", "Memory", "HostToContainer", "Bidirectional",
		"ClusterFirstWithHostNet", "OnFailure", "Never", "Always", "runAsNonRoot", "NET_ADMIN", "NET_BIND_SERVICE", "SYS_ADMIN", "ALL", "RuntimeDefault", "Unconfined", "system-node-critical", "system-cluster-critical",
		"metadata.annotations['", "metadata.labels['", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.podIP", "limits.cpu", "limits.memory", "requests.memory",
		"NODE_NAME", "POD_NAMESPACE", "POD_IP", "HOST_IP", "PATH", "HOME", "TZ", "Europe/Berlin", "LOG_LEVEL", "DEBUG", "info", "warn", "error", "debug", "true", "false", "enabled", "disabled", "localhost", "127.0.0.1", "0.0.0.0", "192.168.", "10.", "172.16.",
		"/bin/sh", "-c", "bash", "exec ", "while true; do ", "sleep ", "; done", "set -eu\n", "--config=/etc/", "--log-level=", "--listen=", "--port=", "-v=2", ".conf", ".yaml", ".json", ".svc.cluster.local", "http://", "https://", "tcp://", "mqtt://",
		"amd64", "arm", "Raspberry Pi OS", "Debian GNU/Linux 13 (trixie)", "Ubuntu 24.04 LTS", "-generic", "cri-o://", "containerd://2.1.",
		"OOMKilled", "Completed", "ContainerCannotRun", "StartError", "DeadlineExceeded", "Evicted", "ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PodInitializing", "ContainerCreating", "ContainersNotInitialized", "containers with incomplete status: [", "BestEffort", "Guaranteed", "Succeeded", "Failed", "Pending", "PodCompleted", "PodFailed",
		"Container image \"", "\" already present on machine", "Successfully pulled image \"", "\" in ", "Pulling image \"", "Created container ", "Started container ", "Stopping container ", "Readiness probe failed: ", "Liveness probe failed: ", "Startup probe failed: ", "HTTP probe failed with statuscode: 500", "Get \"http://10.", "\": dial tcp 10.", ": connect: connection refused", "context deadline exceeded", "Back-off restarting failed container ", " in pod ", "Back-off pulling image \"", "Failed to pull image \"", "Error: ", "FailedMount", "MountVolume.SetUp failed for volume \"", "not found", "failed liveness probe, will be restarted",
		"{\n  \"", "\": {\n    \"", "\": \"", "\",\n    \"", "\": true,\n", "\": false,\n", "\": [\n", "# ", "[server]\n", "server {\n    listen ", "location / {\n", "log_level: ", "apiVersion: v1\nkind: ", "\n  - name: ", "\n    enabled: true\n", "host: ", "port: ", "password: ", "username: ", "topic: ", "interval: 60s\n",
	}, "\n")
}

func probes() *corev1.Container {
	probe := func(h corev1.ProbeHandler) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: h, InitialDelaySeconds: 5, TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3}
	}
	return &corev1.Container{
		LivenessProbe:  probe(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromString("http"), Scheme: "HTTP"}}),
		ReadinessProbe: probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}),
		StartupProbe:   probe(corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cat", "/tmp/healthy"}}}),
	}
}

func richContainer() *corev1.Container {
	yes, no, user := true, false, int64(1000)
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}
	}
	return &corev1.Container{
		Name: "server", Image: "registry.example/server:v1.2.3",
		Ports:   []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: "TCP"}, {Name: "metrics", ContainerPort: 9090, Protocol: "TCP"}},
		EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "env"}}}},
		Env: []corev1.EnvVar{
			{Name: "NODE_NAME", ValueFrom: field("spec.nodeName")}, {Name: "POD_NAME", ValueFrom: field("metadata.name")}, {Name: "POD_NAMESPACE", ValueFrom: field("metadata.namespace")},
			{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "secret"}, Key: "password"}}},
			{Name: "CONFIG", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}, Key: "config"}}},
		},
		Resources: corev1.ResourceRequirements{
			Limits:   corev1.ResourceList{"cpu": resource.MustParse("500m"), "memory": resource.MustParse("256Mi")},
			Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "config", ReadOnly: true, MountPath: "/etc/config"}, {Name: "data", MountPath: "/data"}},
		SecurityContext: &corev1.SecurityContext{Privileged: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, RunAsNonRoot: &yes, RunAsUser: &user,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: "RuntimeDefault"}},
	}
}

// stamp is a time of the years in which nodes live; its first bytes recur.
func stamp() metav1.Time { return metav1.NewTime(time.Unix(0x69c00000, 0)) }

func uid() string { return "00000000-0000-4000-a000-000000000000" }

func events() []interface{ Marshal() ([]byte, error) } {
	var out []interface{ Marshal() ([]byte, error) }
	for _, k := range [][3]string{{"Warning", "BackOff", ""}, {"Warning", "Unhealthy", ""}, {"Normal", "Killing", ""}, {"Normal", "Pulled", ""}, {"Normal", "Created", "Container created"}, {"Normal", "Started", "Container started"}} {
		out = append(out, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: ""},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", APIVersion: "v1", FieldPath: "spec.containers{"},
			Reason:         k[1], Message: k[2], Source: corev1.EventSource{Component: "holdfast"}, FirstTimestamp: stamp(), LastTimestamp: stamp(), Count: 1, Type: k[0],
			ReportingController: "holdfast"})
	}
	return out
}

func configMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt", Namespace: "default", CreationTimestamp: stamp()},
		Data: map[string]string{"ca.crt": "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"}}
}

func node(up bool) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{
		"kubernetes.io/hostname": "", "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64", "holdfast.io/edge": "true"}}}
	if !up {
		n.UID, n.CreationTimestamp, n.Labels["node-role.kubernetes.io/edge"] = "", stamp(), ""
		n.Spec = corev1.NodeSpec{PodCIDR: "10.42.0.0/24", PodCIDRs: []string{"10.42.0.0/24"}}
		return n
	}
	condition := func(t corev1.NodeConditionType, s corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: s, Reason: reason, Message: message, LastHeartbeatTime: stamp(), LastTransitionTime: stamp()}
	}
	resources := corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("3882000Ki"), "ephemeral-storage": resource.MustParse("30000000Ki"), "pods": resource.MustParse("110")}
	n.Status = corev1.NodeStatus{Capacity: resources, Allocatable: resources,
		Conditions: []corev1.NodeCondition{
			condition("Ready", "False", "ContainerRuntimeDown", "the container runtime at /run/containerd/containerd.sock"), condition("Ready", "Unknown", "NodeStatusUnknown", ""),
			condition("MemoryPressure", "False", "MemoryAvailable", "the node has enough memory"),
			condition("DiskPressure", "False", "DiskAvailable", "the node has enough disk"),
			condition("PIDPressure", "False", "ProcessIDsAvailable", "the node has enough process ids"),
			condition("Ready", "True", "EdgecoreReady", "edgecore is ready"),
		},
		Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: "192.168."}, {Type: "Hostname"}},
		NodeInfo: corev1.NodeSystemInfo{KernelVersion: "6.12.25+rpt-rpi-v8", OSImage: "Debian GNU/Linux 12 (bookworm)", ContainerRuntimeVersion: "containerd://1.7.2",
			KubeletVersion: "v1.36.3-holdfast-", OperatingSystem: "linux", Architecture: "arm64"},
	}
	return n
}

func pod() *corev1.Pod {
	yes, life, mode, grace, zero := true, int64(3607), int32(420), int64(30), int32(0)
	policy := corev1.PreemptLowerPriority
	seconds := int64(300)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Generation: 1, CreationTimestamp: stamp(), Labels: map[string]string{"app": "", "pod-template-hash": ""},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Controller: &yes, BlockOwnerDeletion: &yes}}},
		Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{
				{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/"}}},
				{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "secret", DefaultMode: &mode}}},
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}, DefaultMode: &mode}}},
				{Name: "kube-api-access-", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: &mode, Sources: []corev1.VolumeProjection{
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &life, Path: "token"}},
					{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
					{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
				}}}}},
			Containers: []corev1.Container{{Image: "docker.io/library/", ImagePullPolicy: "IfNotPresent",
				TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File",
				VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access-00000", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}}},
			RestartPolicy: "Always", TerminationGracePeriodSeconds: &grace, DNSPolicy: "ClusterFirst", ServiceAccountName: "default", DeprecatedServiceAccount: "default",
			NodeName: "node", SecurityContext: &corev1.PodSecurityContext{}, SchedulerName: "default-scheduler",
			Tolerations: []corev1.Toleration{
				{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &seconds},
				{Key: "node.kubernetes.io/unreachable", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &seconds},
			},
			Priority: &zero, EnableServiceLinks: &yes, PreemptionPolicy: &policy,
		},
	}
}

func terminated() *corev1.ContainerStatus {
	no := false
	return &corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 5m0s restarting failed container= pod="}},
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", StartedAt: stamp(), FinishedAt: stamp(), ContainerID: "containerd://"}}, Started: &no}
}

func status() *corev1.Pod {
	yes, at := true, stamp()
	condition := func(t corev1.PodConditionType, s corev1.ConditionStatus, reason, message string) corev1.PodCondition {
		return corev1.PodCondition{Type: t, ObservedGeneration: 1, Status: s, LastTransitionTime: at, Reason: reason, Message: message}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, Status: corev1.PodStatus{
		Phase: "Running", ObservedGeneration: 1, HostIP: "192.168.", HostIPs: []corev1.HostIP{{IP: "192.168."}}, PodIP: "10.", PodIPs: []corev1.PodIP{{IP: "10."}}, StartTime: &at, QOSClass: "Burstable",
		Conditions: []corev1.PodCondition{
			condition("Ready", "False", "ContainersNotReady", "containers with unready status: ["), condition("ContainersReady", "False", "ContainersNotReady", "containers with unready status: ["),
			condition("PodReadyToStartContainers", "True", "", ""), condition("Initialized", "True", "", ""), condition("Ready", "True", "", ""), condition("ContainersReady", "True", "", ""), condition("PodScheduled", "True", "", ""),
		},
		ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}}, Ready: true,
			ImageID: "docker.io/library/@sha256:", ContainerID: "containerd://", Started: &yes}},
	}}
}
