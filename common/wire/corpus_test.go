package wire

import (
	"encoding/base64"
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// corpus makes objects as a cluster with defaults makes them and as cloud/roster
// and the edge cut them down. Ids are random, of a fixed seed.
type corpus struct {
	t   *testing.T
	rnd *rand.Rand
	now time.Time
}

func newCorpus(t *testing.T) *corpus {
	return &corpus{t: t, rnd: rand.New(rand.NewSource(3)), now: time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)}
}

func (c *corpus) hex(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "0123456789abcdef"[c.rnd.Intn(16)]
	}
	return string(b)
}

func (c *corpus) suffix(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "bcdfghjklmnpqrstvwxz2456789"[c.rnd.Intn(27)]
	}
	return string(b)
}

func (c *corpus) base64(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[c.rnd.Intn(64)]
	}
	return string(b)
}

func (c *corpus) uid() types.UID {
	return types.UID(c.hex(8) + "-" + c.hex(4) + "-4" + c.hex(3) + "-a" + c.hex(3) + "-" + c.hex(12))
}

func (c *corpus) at() metav1.Time {
	c.now = c.now.Add(time.Duration(c.rnd.Intn(90)) * time.Second)
	return metav1.NewTime(c.now)
}

// deployed is a pod of a Deployment after the defaults, the service account's
// admission and the scheduler.
func (c *corpus) deployed(namespace, app string, containers ...corev1.Container) *corev1.Pod {
	hash, yes, life := c.hex(9), true, int64(3607)
	mode, grace, zero, seconds := int32(420), int64(30), int32(0), int64(300)
	volume := "kube-api-access-" + c.suffix(5)
	policy := corev1.PreemptLowerPriority
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: app + "-" + hash + "-" + c.suffix(5), GenerateName: app + "-" + hash + "-", UID: c.uid(), Generation: 1,
			CreationTimestamp: c.at(), Labels: map[string]string{"app": app, "pod-template-hash": hash},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: app + "-" + hash, UID: c.uid(), Controller: &yes, BlockOwnerDeletion: &yes}},
		},
		Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{{Name: volume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: &mode, Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &life, Path: "token"}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
			}}}}},
			RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSClusterFirst,
			ServiceAccountName: "default", DeprecatedServiceAccount: "default", NodeName: "shop-42", SecurityContext: &corev1.PodSecurityContext{},
			SchedulerName: "default-scheduler", Priority: &zero, EnableServiceLinks: &yes, PreemptionPolicy: &policy,
			Tolerations: []corev1.Toleration{
				{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds},
				{Key: "node.kubernetes.io/unreachable", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds},
			},
		},
	}
	for _, k := range containers {
		k.TerminationMessagePath, k.TerminationMessagePolicy = "/dev/termination-log", corev1.TerminationMessageReadFile
		if k.ImagePullPolicy == "" {
			k.ImagePullPolicy = corev1.PullIfNotPresent
		}
		k.VolumeMounts = append(k.VolumeMounts, corev1.VolumeMount{Name: volume, ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"})
		p.Spec.Containers = append(p.Spec.Containers, k)
	}
	return p
}

func (c *corpus) simplePod() *corev1.Pod {
	return c.deployed("default", "till", corev1.Container{Name: "till", Image: "example.test/shop/till:1.14.2", Command: []string{"sleep", "100000"}})
}

func (c *corpus) webPod() *corev1.Pod {
	port := intstr.FromInt32(8080)
	probe := func(path string) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port, Scheme: corev1.URISchemeHTTP}},
			TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3}
	}
	p := c.deployed("kiosk", "price-display", corev1.Container{
		Name: "web", Image: "example.test/kiosk/price-display@sha256:" + c.hex(64),
		Args:  []string{"--listen=:8080", "--currency=EUR", "--broker=tcp://mosquitto.kiosk.svc:1883"},
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		Env: []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}},
			{Name: "BROKER_PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "broker"}, Key: "password"}}},
			{Name: "LANG", Value: "de_DE.UTF-8"}},
		Resources: corev1.ResourceRequirements{
			Limits:   corev1.ResourceList{"cpu": resource.MustParse("500m"), "memory": resource.MustParse("128Mi")},
			Requests: corev1.ResourceList{"cpu": resource.MustParse("50m"), "memory": resource.MustParse("64Mi")}},
		LivenessProbe: probe("/healthz"), ReadinessProbe: probe("/readyz"),
		VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/display"}},
	})
	mode := int32(420)
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "display"}, DefaultMode: &mode}}})
	return p
}

func (c *corpus) status(p *corev1.Pod, ready bool) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
	start, yes := c.at(), true
	s := &out.Status
	*s = corev1.PodStatus{ObservedGeneration: 1, Phase: corev1.PodRunning, HostIP: "192.168.178.42", HostIPs: []corev1.HostIP{{IP: "192.168.178.42"}},
		PodIP: "10.85.0.17", PodIPs: []corev1.PodIP{{IP: "10.85.0.17"}}, StartTime: &start, QOSClass: corev1.PodQOSBurstable}
	at := c.at()
	for _, t := range []corev1.PodConditionType{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		k := corev1.PodCondition{Type: t, ObservedGeneration: 1, Status: corev1.ConditionTrue, LastTransitionTime: at}
		if !ready && (t == "Ready" || t == "ContainersReady") {
			k.Status, k.Reason, k.Message = corev1.ConditionFalse, "ContainersNotReady", "containers with unready status: ["+p.Spec.Containers[0].Name+"]"
		}
		s.Conditions = append(s.Conditions, k)
	}
	for _, k := range p.Spec.Containers {
		cs := corev1.ContainerStatus{Name: k.Name, Image: k.Image, ImageID: strings.SplitN(k.Image, ":", 2)[0] + "@sha256:" + c.hex(64), ContainerID: "containerd://" + c.hex(64),
			Ready: ready, Started: &yes, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: c.at()}}}
		if !ready {
			cs.RestartCount, cs.Started, cs.State = 4, new(bool), corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff",
				Message: fmt.Sprintf("back-off 1m20s restarting failed container=%s pod=%s_%s(%s)", k.Name, p.Name, p.Namespace, p.UID)}}
			cs.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", StartedAt: c.at(), FinishedAt: c.at(), ContainerID: "containerd://" + c.hex(64)}
		}
		s.ContainerStatuses = append(s.ContainerStatuses, cs)
	}
	return out
}

func (c *corpus) nodeDown() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "shop-42", UID: c.uid(), CreationTimestamp: c.at(), Labels: map[string]string{
		"kubernetes.io/hostname": "shop-42", "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64", "holdfast.io/edge": "true", "node-role.kubernetes.io/edge": "", "region": "north"}},
		Spec: corev1.NodeSpec{PodCIDR: "10.42.17.0/24", PodCIDRs: []string{"10.42.17.0/24"}}}
}

func (c *corpus) nodeUp() *corev1.Node {
	capacity := corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("3882440Ki"), "ephemeral-storage": resource.MustParse("30450676Ki"), "pods": resource.MustParse("110")}
	allocatable := corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("3780040Ki"), "ephemeral-storage": resource.MustParse("28063342933"), "pods": resource.MustParse("110")}
	since, beat := c.at(), c.at()
	condition := func(t corev1.NodeConditionType, s corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: s, Reason: reason, Message: message, LastHeartbeatTime: beat, LastTransitionTime: since}
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "shop-42", Labels: map[string]string{
		"kubernetes.io/hostname": "shop-42", "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64", "holdfast.io/edge": "true", "region": "north"}},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: allocatable,
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.178.42"}, {Type: corev1.NodeHostName, Address: "shop-42"}},
			Conditions: []corev1.NodeCondition{
				condition(corev1.NodeMemoryPressure, corev1.ConditionFalse, "MemoryAvailable", "the node has enough memory"),
				condition(corev1.NodeDiskPressure, corev1.ConditionFalse, "DiskAvailable", "the node has enough disk"),
				condition(corev1.NodePIDPressure, corev1.ConditionFalse, "ProcessIDsAvailable", "the node has enough process ids"),
				condition(corev1.NodeReady, corev1.ConditionTrue, "EdgecoreReady", "edgecore is ready"),
			},
			NodeInfo: corev1.NodeSystemInfo{MachineID: c.hex(32), SystemUUID: string(c.uid()), BootID: string(c.uid()), KernelVersion: "6.6.31+rpt-rpi-v8",
				OSImage: "Debian GNU/Linux 12 (bookworm)", ContainerRuntimeVersion: "containerd://1.7.24", KubeletVersion: "v1.36.3-holdfast-0.3.0", OperatingSystem: "linux", Architecture: "arm64"},
		}}
}

func (c *corpus) event(p *corev1.Pod, kind, reason, message string) *corev1.Event {
	at := c.at()
	return &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name + "." + c.hex(16)},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID, FieldPath: "spec.containers{" + p.Spec.Containers[0].Name + "}"},
		Type:           kind, Reason: reason, Message: message, FirstTimestamp: at, LastTimestamp: at, Count: 1,
		Source: corev1.EventSource{Component: "holdfast", Host: "shop-42"}, ReportingController: "holdfast", ReportingInstance: "shop-42"}
}

func (c *corpus) configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kiosk", Name: name, UID: c.uid(), CreationTimestamp: c.at()}, Data: data}
}

func (c *corpus) rootCA() *corev1.ConfigMap {
	pem := "-----BEGIN CERTIFICATE-----\n"
	for range 16 {
		pem += c.base64(64) + "\n"
	}
	return c.configMap("kube-root-ca.crt", map[string]string{"ca.crt": pem + "-----END CERTIFICATE-----\n"})
}

func (c *corpus) mosquitto() *corev1.ConfigMap {
	return c.configMap("mosquitto", map[string]string{"mosquitto.conf": `listener 1883
persistence true
persistence_location /mosquitto/data/
autosave_interval 300
log_dest stdout
log_type error
log_type warning
log_type notice
allow_anonymous false
password_file /mosquitto/secret/passwords
connection cloud
address broker.example.test:8883
topic kiosk/# out 1
topic prices/# in 1
bridge_cafile /mosquitto/secret/ca.crt
bridge_insecure false
keepalive_interval 60
start_type automatic
`})
}

// token is a service account's, as an apiserver signs it for a pod.
func (c *corpus) token(p *corev1.Pod) string {
	at := c.at().Unix()
	claims := fmt.Sprintf(`{"aud":["https://kubernetes.default.svc.cluster.local"],"exp":%d,"iat":%d,"iss":"https://kubernetes.default.svc.cluster.local","jti":%q,`+
		`"kubernetes.io":{"namespace":%q,"node":{"name":"shop-42","uid":%q},"pod":{"name":%q,"uid":%q},"serviceaccount":{"name":"default","uid":%q},"warnafter":%d},`+
		`"nbf":%d,"sub":"system:serviceaccount:%s:default"}`,
		at+31536000, at, c.uid(), p.Namespace, c.uid(), p.Name, p.UID, c.uid(), at+3607, at, p.Namespace)
	text := base64.RawURLEncoding.EncodeToString
	return text([]byte(`{"alg":"RS256","kid":"`+c.base64(43)+`"}`)) + "." + text([]byte(claims)) + "." + c.base64(341) + "Q"
}

// down is a message that brings one object.
func (c *corpus) down(k Kind, ns, name string, uid types.UID, o interface{ Marshal() ([]byte, error) }) *HubMessage {
	b, err := o.Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	return &HubMessage{Body: &HubMessage_Changes{Changes: &Changes{Seq: 4, Upserts: []*Object{{
		Ref: &ObjectRef{Kind: k, Namespace: ns, Name: name, Uid: string(uid), Version: Version(b)}, Payload: b}}}}}
}

// up is a report.
func (c *corpus) up(k ReportKind, o interface{ Marshal() ([]byte, error) }) *EdgeMessage {
	b, err := o.Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	return &EdgeMessage{Body: &EdgeMessage_Report{Report: &Report{Id: 1234, Kind: k, Payload: b}}}
}
