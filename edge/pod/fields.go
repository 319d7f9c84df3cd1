package pod

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/edge/status"
)

// class says what becomes of a field of a pod.
type class struct {
	kind kind
	why  string // to the user, where the field is not honoured
}

type kind uint8

const (
	honoured kind = iota + 1
	inside        // its own fields are classified
	others        // scheduler, apiserver or controllers act on it, not the node
	refused       // the pod is not run
	told          // the pod runs without it, and an event says so
)

// classes holds every field that the apiserver lets through, by "<Go type>.<JSON name>". TestEveryFieldIs-
// Classified fails when Kubernetes grows a field that is not here.
type classes map[string]class

func fieldClasses() classes {
	c := classes{}
	add := func(k kind, why string, names ...string) {
		for _, n := range names {
			c[n] = class{k, why}
		}
	}
	addPod(add)
	addContainer(add)
	addEphemeral(add)
	addVolumes(add)
	return c
}

type adder func(k kind, why string, names ...string)

func addPod(add adder) {
	add(inside, "", "PodSpec.volumes", "PodSpec.initContainers", "PodSpec.containers", "PodSpec.ephemeralContainers", "PodSpec.securityContext")
	add(honoured, "", "PodSpec.restartPolicy", "PodSpec.terminationGracePeriodSeconds", "PodSpec.activeDeadlineSeconds",
		"PodSpec.dnsPolicy", "PodSpec.dnsConfig", "PodSpec.serviceAccountName", "PodSpec.serviceAccount", "PodSpec.nodeName",
		"PodSpec.hostNetwork", "PodSpec.hostPID", "PodSpec.hostIPC", "PodSpec.shareProcessNamespace", "PodSpec.imagePullSecrets",
		"PodSpec.hostname", "PodSpec.subdomain", "PodSpec.hostAliases", "PodSpec.hostnameOverride", "PodSpec.priority")
	add(others, "", "PodSpec.automountServiceAccountToken", "PodSpec.nodeSelector", "PodSpec.affinity", "PodSpec.schedulerName",
		"PodSpec.tolerations", "PodSpec.priorityClassName", "PodSpec.preemptionPolicy", "PodSpec.topologySpreadConstraints",
		"PodSpec.schedulingGates", "PodSpec.schedulingGroup", "PodSpec.os")
	// The apiserver sets it on every pod. An edge node holds no Services, so there is nothing to link to;
	// an event for each pod would say nothing. It is in the documentation.
	add(others, "", "PodSpec.enableServiceLinks")
	add(told, "the pod's overhead is not counted in its cgroup", "PodSpec.overhead")
	add(told, "the host name stays the short one", "PodSpec.setHostnameAsFQDN")
	add(told, "pod-level resources are not applied to the pod's cgroup; set them on the containers", "PodSpec.resources")
	add(refused, "conditions that others set are not known on an edge node, so the pod could never become ready", "PodSpec.readinessGates")
	add(refused, "RuntimeClass objects are not relayed to edge nodes; leave the field out to use containerd's default runtime", "PodSpec.runtimeClassName")
	add(refused, "user namespaces are not supported on edge nodes", "PodSpec.hostUsers")
	add(refused, "dynamic resource allocation is not supported on edge nodes", "PodSpec.resourceClaims")

	add(honoured, "", "PodSecurityContext.seLinuxOptions", "PodSecurityContext.runAsUser", "PodSecurityContext.runAsGroup",
		"PodSecurityContext.runAsNonRoot", "PodSecurityContext.supplementalGroups", "PodSecurityContext.supplementalGroupsPolicy",
		"PodSecurityContext.fsGroup", "PodSecurityContext.sysctls", "PodSecurityContext.seccompProfile", "PodSecurityContext.appArmorProfile")
	add(told, "the owners of files are looked at whenever the volume is mounted", "PodSecurityContext.fsGroupChangePolicy")
	add(told, "volumes are labelled as they are mounted", "PodSecurityContext.seLinuxChangePolicy")
	add(refused, "this is a Linux node", "PodSecurityContext.windowsOptions")
}

func addContainer(add adder) {
	add(inside, "", "Container.ports", "Container.envFrom", "Container.env", "Container.volumeMounts", "Container.livenessProbe",
		"Container.readinessProbe", "Container.startupProbe", "Container.lifecycle", "Container.securityContext", "Container.resources",
		"Container.restartPolicyRules")
	add(honoured, "", "Container.name", "Container.image", "Container.command", "Container.args", "Container.workingDir",
		"Container.restartPolicy", "Container.terminationMessagePath", "Container.terminationMessagePolicy", "Container.imagePullPolicy",
		"Container.stdin", "Container.stdinOnce", "Container.tty")
	add(refused, "raw block devices need a storage driver, which edge nodes do not have", "Container.volumeDevices")
	// What a resize asks for is told when it comes, see resized.
	add(others, "", "Container.resizePolicy")

	add(honoured, "", "ResourceRequirements.limits", "ResourceRequirements.requests")
	add(refused, "dynamic resource allocation is not supported on edge nodes", "ResourceRequirements.claims")
	add(honoured, "", "ContainerRestartRule.exitCodes", "ContainerRestartRule.action")

	add(honoured, "", "ContainerPort.name", "ContainerPort.hostPort", "ContainerPort.containerPort", "ContainerPort.protocol", "ContainerPort.hostIP")
	add(honoured, "", "EnvFromSource.prefix", "EnvFromSource.configMapRef", "EnvFromSource.secretRef")
	add(honoured, "", "EnvVar.name", "EnvVar.value")
	add(inside, "", "EnvVar.valueFrom")
	add(honoured, "", "EnvVarSource.fieldRef", "EnvVarSource.resourceFieldRef", "EnvVarSource.configMapKeyRef", "EnvVarSource.secretKeyRef")
	add(refused, "environment variables from files are not supported on edge nodes", "EnvVarSource.fileKeyRef")

	add(honoured, "", "VolumeMount.name", "VolumeMount.readOnly", "VolumeMount.recursiveReadOnly", "VolumeMount.mountPath", "VolumeMount.subPath",
		"VolumeMount.mountPropagation", "VolumeMount.subPathExpr")

	add(honoured, "", "Probe.initialDelaySeconds", "Probe.timeoutSeconds", "Probe.periodSeconds", "Probe.successThreshold",
		"Probe.failureThreshold", "Probe.terminationGracePeriodSeconds")
	add(honoured, "", "ProbeHandler.exec", "ProbeHandler.httpGet", "ProbeHandler.tcpSocket", "ProbeHandler.grpc")
	add(inside, "", "Lifecycle.postStart", "Lifecycle.preStop")
	add(honoured, "", "Lifecycle.stopSignal")
	add(honoured, "", "LifecycleHandler.exec", "LifecycleHandler.httpGet", "LifecycleHandler.sleep")
	// As in Kubernetes itself, where it has never done anything; the hook fails and says so.
	add(told, "Kubernetes has no TCP hooks", "LifecycleHandler.tcpSocket")

	add(honoured, "", "SecurityContext.capabilities", "SecurityContext.privileged", "SecurityContext.seLinuxOptions", "SecurityContext.runAsUser",
		"SecurityContext.runAsGroup", "SecurityContext.runAsNonRoot", "SecurityContext.readOnlyRootFilesystem",
		"SecurityContext.allowPrivilegeEscalation", "SecurityContext.procMount", "SecurityContext.seccompProfile", "SecurityContext.appArmorProfile")
	add(refused, "this is a Linux node", "SecurityContext.windowsOptions")
}

// addEphemeral: of an ephemeral container the apiserver lets fewer fields through.
func addEphemeral(add adder) {
	add(inside, "", "EphemeralContainerCommon.envFrom", "EphemeralContainerCommon.env", "EphemeralContainerCommon.volumeMounts",
		"EphemeralContainerCommon.securityContext")
	add(honoured, "", "EphemeralContainerCommon.name", "EphemeralContainerCommon.image", "EphemeralContainerCommon.command",
		"EphemeralContainerCommon.args", "EphemeralContainerCommon.workingDir", "EphemeralContainerCommon.terminationMessagePath",
		"EphemeralContainerCommon.terminationMessagePolicy", "EphemeralContainerCommon.imagePullPolicy", "EphemeralContainerCommon.stdin",
		"EphemeralContainerCommon.stdinOnce", "EphemeralContainerCommon.tty", "EphemeralContainer.targetContainerName")
	add(told, "raw block devices need a storage driver, which edge nodes do not have", "EphemeralContainerCommon.volumeDevices")
	add(others, "", "EphemeralContainerCommon.ports", "EphemeralContainerCommon.resources", "EphemeralContainerCommon.resizePolicy",
		"EphemeralContainerCommon.restartPolicy", "EphemeralContainerCommon.restartPolicyRules", "EphemeralContainerCommon.livenessProbe",
		"EphemeralContainerCommon.readinessProbe", "EphemeralContainerCommon.startupProbe", "EphemeralContainerCommon.lifecycle")
}

func addVolumes(add adder) {
	add(honoured, "", "Volume.name", "VolumeSource.hostPath", "VolumeSource.emptyDir", "VolumeSource.secret", "VolumeSource.configMap",
		"VolumeSource.downwardAPI")
	add(inside, "", "VolumeSource.projected", "ProjectedVolumeSource.sources")
	add(honoured, "", "ProjectedVolumeSource.defaultMode", "VolumeProjection.secret", "VolumeProjection.downwardAPI",
		"VolumeProjection.configMap", "VolumeProjection.serviceAccountToken")
	add(refused, "certificates from the cluster are not relayed to edge nodes", "VolumeProjection.clusterTrustBundle", "VolumeProjection.podCertificate")
	const local = "edge nodes keep volumes of the kinds emptyDir, hostPath, configMap, secret, projected and downwardAPI"
	add(refused, local, "VolumeSource.persistentVolumeClaim", "VolumeSource.ephemeral", "VolumeSource.csi", "VolumeSource.nfs", "VolumeSource.iscsi",
		"VolumeSource.glusterfs", "VolumeSource.rbd", "VolumeSource.flexVolume", "VolumeSource.cinder", "VolumeSource.cephfs", "VolumeSource.flocker",
		"VolumeSource.fc", "VolumeSource.azureFile", "VolumeSource.vsphereVolume", "VolumeSource.quobyte", "VolumeSource.azureDisk",
		"VolumeSource.photonPersistentDisk", "VolumeSource.portworxVolume", "VolumeSource.scaleIO", "VolumeSource.storageos", "VolumeSource.gitRepo",
		"VolumeSource.gcePersistentDisk", "VolumeSource.awsElasticBlockStore", "VolumeSource.image")
}

// finding is one field that a pod sets and that is not honoured.
type finding struct {
	path string
	class
}

// judgeSpec lists what of a pod is refused and what is told.
func judgeSpec(spec *corev1.PodSpec, known classes) (refusals, notices []finding) {
	walk(reflect.ValueOf(spec).Elem(), "spec", func(owner, name, path string, v reflect.Value) bool {
		c, ok := known[owner+"."+name]
		if !ok {
			c = class{refused, "this version of edgecore does not know the field"}
		}
		if ok && harmless(owner, name, v) {
			return false
		}
		// A pod that runs is not stopped by what somebody added in order to look into it.
		if c.kind == refused && strings.HasPrefix(path, "spec.ephemeralContainers[") {
			c.kind = told
		}
		switch c.kind {
		case refused:
			refusals = append(refusals, finding{path, c})
		case told:
			notices = append(notices, finding{path, c})
		}
		return c.kind == inside
	})
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			for _, r := range list[i].RestartPolicyRules {
				if r.Action != corev1.ContainerRestartRuleActionRestart {
					refusals = append(refusals, finding{"spec.containers[" + list[i].Name + "].restartPolicyRules.action",
						class{refused, "only the action Restart is supported on edge nodes"}})
				}
			}
		}
	}
	return refusals, notices
}

// harmless tells whether a value asks for what happens anyway.
func harmless(owner, name string, v reflect.Value) bool {
	switch owner + "." + name {
	case "PodSpec.hostUsers":
		return v.Elem().Bool()
	case "PodSpec.setHostnameAsFQDN":
		return !v.Elem().Bool()
	case "PodSecurityContext.fsGroupChangePolicy":
		return v.Elem().String() == string(corev1.FSGroupChangeAlways)
	}
	return false
}

// walk calls visit for each field below v that is set, and goes into it when visit says so.
func walk(v reflect.Value, path string, visit func(owner, name, path string, v reflect.Value) bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			walk(v.Elem(), path, visit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			walk(v.Index(i), fmt.Sprintf("%s[%s]", path, label(v.Index(i), i)), visit)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name, inline := jsonName(f)
			switch {
			case inline:
				walk(v.Field(i), path, visit)
			case !empty(v.Field(i)) && visit(v.Type().Name(), name, path+"."+name, v.Field(i)):
				walk(v.Field(i), path+"."+name, visit)
			}
		}
	}
}

func empty(v reflect.Value) bool {
	if v.Kind() == reflect.Slice || v.Kind() == reflect.Map {
		return v.Len() == 0
	}
	return v.IsZero()
}

// label names an element of a list by its name where it has one.
func label(v reflect.Value, i int) string {
	if v.Kind() == reflect.Struct {
		if n := v.FieldByName("Name"); n.IsValid() && n.Kind() == reflect.String && n.Len() > 0 {
			return n.String()
		}
	}
	return fmt.Sprint(i)
}

func jsonName(f reflect.StructField) (name string, inline bool) {
	name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, name == "" && strings.Contains(rest, "inline")
}

// fieldTable makes the table once, when the first pod is judged.
type fieldTable struct {
	once  sync.Once
	known classes
}

func (t *fieldTable) get() classes {
	t.once.Do(func() { t.known = fieldClasses() })
	return t.known
}

// judge looks at the pod's fields once for each of its generations. A pod with a field that cannot be
// honoured is not run; one that runs already (a kubelet's, or an older edgecore's) goes on and is told.
func (w *worker) judge() {
	if w.judged == w.pod.Generation || w.pod.Namespace == "" || w.vanished {
		return
	}
	w.judged = w.pod.Generation
	refusals, notices := judgeSpec(&w.pod.Spec, w.m.fields.get())
	w.refused = nil
	if len(refusals) > 0 && len(w.seen.Containers) == 0 && len(w.record.Memory.Attempts) == 0 {
		text := list(refusals)
		w.refused = &status.Waiting{Reason: "FieldNotSupported", Message: text}
		w.log.Warn("pod is refused", "fields", text)
		w.m.events.pod(w.pod, corev1.EventTypeWarning, "FieldNotSupported", "The pod is not run on this node: "+text)
		return
	}
	notices = append(notices, refusals...)
	if len(notices) == 0 || w.record.Told == max(w.pod.Generation, 1) {
		return
	}
	w.record.Told = max(w.pod.Generation, 1)
	w.dirty()
	w.m.events.pod(w.pod, corev1.EventTypeWarning, "FieldNotHonoured", "The pod runs without: "+list(notices))
}

func list(findings []finding) string {
	var lines []string
	for _, f := range findings {
		line := f.path
		if f.why != "" {
			line += " (" + f.why + ")"
		}
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
