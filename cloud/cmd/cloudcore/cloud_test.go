package main

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/cloud/hub/edgetest"
	"github.com/holdfast-edge/holdfast/cloud/report"
	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// TestCloudcore shows cloudcore with a real control plane, its real rights, and
// scripted edges over real connections. The parts share one control plane.
func TestCloudcore(t *testing.T) {
	p := newPlace(t)
	t.Run("a node registers", p.registers)
	t.Run("a pod comes with what it refers to and nothing else", p.delivers)
	t.Run("a reconnect in which nothing changed costs next to nothing", p.inSync)
	t.Run("a node gets nothing of another", p.authorizes)
	t.Run("reports reach the apiserver", p.reports)
	t.Run("a pod ends when the node says so", p.ends)
	t.Run("a readiness gate counts", p.gates)
	t.Run("an edge that lost its database is not given ended pods", p.ended)
	t.Run("a deleted pod leaves a node that was away", p.away)
	t.Run("nothing is lost while the apiserver is away", p.apiserverAway)
	t.Run("of two hubs the later claim writes", p.fences)
	t.Run("a node moves to another hub", p.moves)
	t.Run("a silent node keeps its pods", p.silent)
}

func refersTo(p *corev1.Pod) {
	optional := true
	p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "prices"}}},
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "later"}, Optional: &optional}},
	}
	p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "till-key"}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "s", MountPath: "/s"}}
}

func (p *place) registers(t *testing.T) {
	e := p.edge(t, "till-1", "one")
	e.Connect()
	e.Wait("Welcome", func(s edgetest.Seen) bool { return s.Welcome != nil })
	said := nodeReport("till-1")
	said.Labels["node-role.kubernetes.io/master"] = ""
	said.Spec.Taints = []corev1.Taint{{Key: "edge", Effect: corev1.TaintEffectNoSchedule}}
	if r := e.Report(wire.ReportKind_REPORT_NODE, said); r.Code != wire.ResultCode_RESULT_ACCEPTED || r.Message == "" {
		t.Fatalf("want it accepted with a note about the label, got %v", r)
	}
	n, err := p.client.CoreV1().Nodes().Get(t.Context(), "till-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"shop", roster.LabelEdge, report.LabelRole, "kubernetes.io/hostname"} {
		if _, ok := n.Labels[k]; !ok {
			t.Errorf("label %s is missing: %v", k, n.Labels)
		}
	}
	if _, ok := n.Labels["node-role.kubernetes.io/master"]; ok {
		t.Error("the node gave itself the role of a master")
	}
	if a := n.Status.Addresses; len(a) != 2 || a[1].Address != "192.0.2.7" || n.Status.DaemonEndpoints.KubeletEndpoint.Port == 0 {
		t.Errorf("it leads to the hub, and then says its own address: %v %v", a, n.Status.DaemonEndpoints)
	}
	if !report.NodeReady(n) || n.Annotations[roster.AnnotationHub] == "" {
		t.Errorf("status or annotations are not as reported: %v %v", n.Status, n.Annotations)
	}
	if !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == "edge" }) {
		t.Errorf("the taint is missing: %v", n.Spec.Taints)
	}
	eventually(t, "the node has a lease", func() bool {
		l, err := p.client.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "till-1", metav1.GetOptions{})
		return err == nil && len(l.OwnerReferences) == 1 && l.OwnerReferences[0].UID == n.UID && l.Spec.RenewTime != nil
	})
	e.WaitObjects("its Node", edgetest.Has("node//till-1"))
	e.Wait("Synced", func(s edgetest.Seen) bool { return s.Synced > 0 || s.Welcome.InSync })
}

func (p *place) delivers(t *testing.T) {
	e := p.join(t, "till-2")
	p.configMap(t, "prices", "1")
	p.configMap(t, "unrelated", "x")
	p.secret(t, "till-key", "k")
	p.create(t, pod("till", "till-2", refersTo, func(p *corev1.Pod) { p.Finalizers = []string{"example.test/keep"} }))
	e.WaitObjects("the pod and what it refers to", edgetest.Has("pod/default/till", "configmap/default/prices", "secret/default/till-key"))
	if e.Objects()["configmap/default/unrelated"] != nil {
		t.Error("a ConfigMap that no pod refers to was sent")
	}
	got := e.Pod("pod/default/till")
	if got.Status.Phase != "" || got.ManagedFields != nil || got.ResourceVersion != "" {
		t.Errorf("the pod is not stripped: %v", got)
	}
	kinds := []wire.Kind{}
	for _, o := range e.Seen().Upserts {
		kinds = append(kinds, o.Ref.Kind)
	}
	if slices.Index(kinds, wire.Kind_KIND_POD) < slices.Index(kinds, wire.Kind_KIND_SECRET) {
		t.Errorf("the pod came before its Secret: %v", kinds)
	}

	p.configMap(t, "prices", "2")
	e.WaitObjects("the new prices", func(o map[string]*wire.Object) bool {
		cm := new(corev1.ConfigMap)
		return cm.Unmarshal(o["configmap/default/prices"].Payload) == nil && cm.Data["value"] == "2"
	})
	p.configMap(t, "later", "now")
	e.WaitObjects("the ConfigMap that was missing", edgetest.Has("configmap/default/later"))
	if err := p.client.CoreV1().Secrets("default").Delete(t.Context(), "till-key", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.WaitObjects("the deletion of the Secret", edgetest.Lacks("secret/default/till-key"))

	// Taken away by force, with another of its name at once: the old one goes, the new one comes.
	if _, err := p.client.CoreV1().Pods("default").Patch(t.Context(), "till", "application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.client.CoreV1().Pods("default").Delete(t.Context(), "till", *metav1.NewDeleteOptions(0)); err != nil {
		t.Fatal(err)
	}
	anew := p.create(t, pod("till", "till-2"))
	e.WaitObjects("the pod's successor alone, without references", func(o map[string]*wire.Object) bool {
		return o["pod/default/till"] != nil && o["pod/default/till"].Ref.Uid == string(anew.UID) && edgetest.Lacks("configmap/default/prices", "configmap/default/later")(o)
	})
}

func (p *place) inSync(t *testing.T) {
	e := p.join(t, "till-3")
	p.create(t, pod("still", "till-3"))
	e.WaitObjects("the pod with its tolerations settled", edgetest.Has("pod/default/still"))
	eventually(t, "autonomy has patched the pod", func() bool {
		got := p.get(t, "still")
		return got.Annotations[roster.AnnotationTolerations] != "" && got.Generation == e.Pod("pod/default/still").Generation
	})
	// What controllers still do to the fresh node may need a connection or two.
	var s edgetest.Seen
	eventually(t, "a reconnect finds everything in sync", func() bool {
		e.Disconnect()
		e.Connect()
		e.Wait("the hub's verdict", func(s edgetest.Seen) bool { return s.Welcome.GetInSync() || s.Synced > 0 })
		s = e.Seen()
		return s.Welcome.InSync
	})
	if s.Asked || len(s.Upserts) > 0 || s.Bytes > 200 {
		t.Errorf("nothing changed, and yet: asked %v, %d upserts, %d bytes", s.Asked, len(s.Upserts), s.Bytes)
	}
	if s.Welcome.HubTimeUnixMs == 0 {
		t.Error("no hub time")
	}
	// Live changes go on after the short cut.
	p.create(t, pod("more", "till-3"))
	e.WaitObjects("a live change", edgetest.Has("pod/default/more"))
}

// authorizes shows that Kubernetes' own authorizer stands between nodes.
func (p *place) authorizes(t *testing.T) {
	p.secret(t, "of-b", "b")
	a, b := p.join(t, "node-a"), p.join(t, "node-b")
	ofB := p.create(t, pod("b", "node-b", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{
			{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "of-b"}}},
			{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
			}}}},
		}
	}))
	b.WaitObjects("its pod and Secret", edgetest.Has("pod/default/b", "secret/default/of-b"))
	if slices.ContainsFunc(a.Names(), func(n string) bool { return n != "node//node-a" }) {
		t.Errorf("node-a holds %q", a.Names())
	}

	rc, err := p.cluster.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	for node, allowed := range map[string]bool{"node-a": false, "node-b": true} {
		as := rest.CopyConfig(rc)
		as.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + node, Groups: []string{"system:nodes"}}
		client, err := kubernetes.NewForConfig(as)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.CoreV1().Secrets("default").Get(t.Context(), "of-b", metav1.GetOptions{})
		if allowed != (err == nil) || !allowed && !apierrors.IsForbidden(err) {
			t.Errorf("%s reads the Secret of a pod of node-b: %v", node, err)
		}
	}

	if r := a.Report(wire.ReportKind_REPORT_POD_STATUS, running(ofB)); r.Code != wire.ResultCode_RESULT_REJECTED {
		t.Errorf("node-a writes the status of a pod of node-b: %v", r)
	}
	if r := a.Report(wire.ReportKind_REPORT_POD_GONE, ofB); r.Code != wire.ResultCode_RESULT_REJECTED {
		t.Errorf("node-a ends a pod of node-b: %v", r)
	}
	if r := a.Report(wire.ReportKind_REPORT_NODE, nodeReport("node-b")); r.Code != wire.ResultCode_RESULT_REJECTED {
		t.Errorf("node-a reports as node-b: %v", r)
	}
	ask := func() *wire.TokenAsk {
		return &wire.TokenAsk{Namespace: "default", ServiceAccount: "default", PodName: "b", PodUid: string(ofB.UID), ExpirationSeconds: 600}
	}
	if answer := a.Token(ask()); answer.Code != wire.ResultCode_RESULT_REJECTED || answer.Token != "" {
		t.Errorf("node-a gets a token for a pod of node-b: %v", answer.Message)
	}
	answer := b.Token(ask())
	if answer.Code != wire.ResultCode_RESULT_ACCEPTED || answer.Token == "" || answer.ExpiresUnix < time.Now().Unix() || answer.HubTimeUnixMs == 0 {
		t.Errorf("node-b asks for a token for its own pod: %v %s", answer.Code, answer.Message)
	}
}

func (p *place) reports(t *testing.T) {
	e := p.join(t, "till-4")
	made := p.create(t, pod("busy", "till-4"))
	e.WaitObjects("the pod", edgetest.Has("pod/default/busy"))
	said := running(made)
	said.Status.StartTime = &metav1.Time{Time: time.Unix(0, 0)} // a clock that stood still
	if r := e.Report(wire.ReportKind_REPORT_POD_STATUS, said); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatalf("status: %v", r)
	}
	got := p.get(t, "busy")
	if got.Status.Phase != corev1.PodRunning || got.Status.ContainerStatuses[0].RestartCount != 2 || got.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("status in the cluster: %v", got.Status)
	}
	if got.Status.StartTime.Before(&made.CreationTimestamp) {
		t.Errorf("started %s, made %s", got.Status.StartTime, made.CreationTimestamp)
	}
	before := len(e.Seen().Upserts)

	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: "busy.1", Namespace: "default"},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "busy", UID: made.UID},
		Reason:         "Pulling", Message: "pulling", Type: "Normal", Count: 1, Source: corev1.EventSource{Component: "edgecore"},
	}
	if r := e.Report(wire.ReportKind_REPORT_EVENT, event); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatalf("event: %v", r)
	}
	event.Count, event.Message = 3, "pulling again"
	if r := e.Report(wire.ReportKind_REPORT_EVENT, event); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatalf("event again: %v", r)
	}
	seen, err := p.client.CoreV1().Events("default").Get(t.Context(), "busy.1", metav1.GetOptions{})
	if err != nil || seen.Count != 3 || seen.Message != "pulling again" || seen.Source.Host != "till-4" {
		t.Errorf("event in the cluster: %v, %v", seen, err)
	}

	other := running(made)
	other.UID = "another"
	for _, kind := range []wire.ReportKind{wire.ReportKind_REPORT_POD_STATUS, wire.ReportKind_REPORT_POD_GONE} {
		if r := e.Report(kind, other); r.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Errorf("%s about a pod that is gone: %v", kind, r)
		}
	}
	if r := e.Report(wire.ReportKind_REPORT_POD_GONE, made); r.Code != wire.ResultCode_RESULT_REJECTED || p.get(t, "busy") == nil {
		t.Errorf("a pod that nobody deleted is reported gone: %v", r)
	}
	if r := e.Report(wire.ReportKind(99), made); r.Code != wire.ResultCode_RESULT_RETRY {
		t.Errorf("a report of a kind that only newer hubs know: %v", r)
	}
	for _, o := range e.Seen().Upserts[before:] {
		if o.Ref.Kind == wire.Kind_KIND_POD && e.Pod("pod/default/busy").Generation == made.Generation {
			t.Error("a status came back to the edge as a change of the pod")
		}
	}
}

func (p *place) ends(t *testing.T) {
	e := p.join(t, "till-5")
	made := p.create(t, pod("leaver", "till-5"))
	e.WaitObjects("the pod", edgetest.Has("pod/default/leaver"))
	if err := p.client.CoreV1().Pods("default").Delete(t.Context(), "leaver", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.WaitObjects("the deletion's time and grace", func(map[string]*wire.Object) bool { return true })
	eventually(t, "the edge knows that the pod is to end", func() bool {
		got := e.Pod("pod/default/leaver")
		return got.DeletionTimestamp != nil && *got.DeletionGracePeriodSeconds == 30
	})
	if r := e.Report(wire.ReportKind_REPORT_POD_GONE, made); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatalf("gone: %v", r)
	}
	if p.get(t, "leaver") != nil {
		t.Error("the pod is still in the cluster")
	}
	e.WaitObjects("its deletion at the edge", edgetest.Lacks("pod/default/leaver"))
}

func (p *place) gates(t *testing.T) {
	const gate = corev1.PodConditionType("example.test/balanced")
	e := p.join(t, "till-6")
	made := p.create(t, pod("gated", "till-6", func(p *corev1.Pod) { p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: gate}} }))
	e.WaitObjects("the pod", edgetest.Has("pod/default/gated"))
	if r := e.Report(wire.ReportKind_REPORT_POD_STATUS, running(made)); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	isReady := func() bool {
		return slices.ContainsFunc(p.get(t, "gated").Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	}
	if isReady() {
		t.Error("Ready before its gate")
	}
	patch := `{"status":{"conditions":[{"type":"` + string(gate) + `","status":"True"}]}}`
	if _, err := p.client.CoreV1().Pods("default").Patch(t.Context(), "gated", "application/strategic-merge-patch+json", []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is Ready", isReady)
}

func (p *place) ended(t *testing.T) {
	e := p.join(t, "till-7")
	made := p.create(t, pod("job", "till-7"))
	p.create(t, pod("service", "till-7"))
	e.WaitObjects("the pods", edgetest.Has("pod/default/job", "pod/default/service"))
	done := running(made)
	done.Status.Phase = corev1.PodSucceeded
	done.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	if r := e.Report(wire.ReportKind_REPORT_POD_STATUS, done); r.Code != wire.ResultCode_RESULT_ACCEPTED {
		t.Fatal(r)
	}
	if r := e.Report(wire.ReportKind_REPORT_POD_STATUS, running(made)); r.Code != wire.ResultCode_RESULT_REJECTED {
		t.Errorf("a pod runs again after its end: %v", r)
	}
	// The hub's caches may be a little behind the apiserver's answer.
	eventually(t, "an edge without a database is given the service and not the job", func() bool {
		e.Disconnect()
		e.Forget()
		e.Connect()
		e.Wait("Synced", func(s edgetest.Seen) bool { return s.Synced > 0 })
		return edgetest.Has("pod/default/service")(e.Objects()) && edgetest.Lacks("pod/default/job")(e.Objects())
	})
	eventually(t, "a reconnect takes the short cut in spite of the ended pod", func() bool {
		e.Disconnect()
		e.Connect()
		e.Wait("the hub's verdict", func(s edgetest.Seen) bool { return s.Welcome.GetInSync() || s.Synced > 0 })
		return e.Seen().Welcome.InSync
	})
}

func (p *place) away(t *testing.T) {
	e := p.join(t, "till-8")
	p.create(t, pod("old", "till-8"))
	p.create(t, pod("stays", "till-8"))
	e.WaitObjects("the pods", edgetest.Has("pod/default/old", "pod/default/stays"))
	e.Disconnect()
	if err := p.client.CoreV1().Pods("default").Delete(t.Context(), "old", *metav1.NewDeleteOptions(0)); err != nil {
		t.Fatal(err)
	}
	p.create(t, pod("new", "till-8"))
	e.Connect()
	e.WaitObjects("what is new, without what is gone", func(o map[string]*wire.Object) bool {
		return edgetest.Has("pod/default/new", "pod/default/stays")(o) && edgetest.Lacks("pod/default/old")(o)
	})
	if slices.ContainsFunc(e.Seen().Deletes, func(r *wire.ObjectRef) bool { return r.Name != "old" }) {
		t.Errorf("deleted at the edge: %v", e.Seen().Deletes)
	}
}

func (p *place) apiserverAway(t *testing.T) {
	e := p.join(t, "till-9")
	made := p.create(t, pod("steady", "till-9"))
	e.WaitObjects("the pod", edgetest.Has("pod/default/steady"))
	if err := p.cluster.Kill(); err != nil {
		t.Fatal(err)
	}
	if r := e.Report(wire.ReportKind_REPORT_POD_STATUS, running(made)); r.Code != wire.ResultCode_RESULT_RETRY {
		t.Errorf("without an apiserver: %v", r)
	}
	if answer := e.Token(&wire.TokenAsk{Namespace: "default", ServiceAccount: "default", PodName: "steady", PodUid: string(made.UID)}); answer.Code != wire.ResultCode_RESULT_RETRY {
		t.Errorf("without an apiserver a token: %v", answer.Code)
	}
	// What the hub cannot confirm as gone stays: an unknown pod of the edge's.
	phantom := pod("phantom", "till-9")
	phantom.UID = "11111111-2222-3333-4444-555555555555"
	item, err := roster.Pod(phantom)
	if err != nil {
		t.Fatal(err)
	}
	object, err := item.Object()
	if err != nil {
		t.Fatal(err)
	}
	e.Disconnect()
	e.Put(object)
	e.Connect()
	// A hub holds nothing of nodes that are not connected: of one that comes now it
	// knows nothing, and unknown is not empty.
	e.Wait("Welcome", func(s edgetest.Seen) bool { return s.Welcome != nil })

	if err := p.cluster.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.WaitObjects("the phantom's deletion", edgetest.Lacks("pod/default/phantom"))
	e.Wait("Synced", func(s edgetest.Seen) bool { return s.Synced > 0 })
	if slices.ContainsFunc(e.Seen().Deletes, func(r *wire.ObjectRef) bool { return r.Name != "phantom" }) {
		t.Errorf("deleted at the edge: %v", e.Seen().Deletes)
	}
	p.create(t, pod("after", "till-9"))
	e.WaitObjects("a pod made after the return", edgetest.Has("pod/default/after"))
	eventually(t, "the status is accepted after the return", func() bool {
		r := e.Report(wire.ReportKind_REPORT_POD_STATUS, running(made))
		if r.Code == wire.ResultCode_RESULT_REJECTED {
			t.Fatalf("after the return: %v", r)
		}
		return r.Code == wire.ResultCode_RESULT_ACCEPTED
	})
}

// silent is the point of it all, in the cloud: what the cluster does about nodes
// that it does not hear.
func (p *place) silent(t *testing.T) {
	seconds := int64(5)
	brief := func(p *corev1.Pod) {
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds})
		}
	}
	// The controller evicts nothing when more than half of the nodes are silent:
	// the earlier nodes must not count, and some must stay.
	if err := p.client.CoreV1().Nodes().DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"healthy-1", "healthy-2", "healthy-3"} {
		p.join(t, name)
	}
	kept, lost := p.join(t, "keeper"), p.join(t, "loser")
	if _, err := p.client.CoreV1().Nodes().Patch(t.Context(), "loser", "application/merge-patch+json", []byte(`{"metadata":{"annotations":{"holdfast.io/autonomy":"off"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]*edgetest.Edge{"keeper": kept, "loser": lost} {
		made := p.create(t, pod("on-"+name, name, brief))
		e.WaitObjects("its pod", edgetest.Has("pod/default/on-"+name))
		if r := e.Report(wire.ReportKind_REPORT_POD_STATUS, running(made)); r.Code != wire.ResultCode_RESULT_ACCEPTED {
			t.Fatal(r)
		}
	}
	kept.Disconnect()
	lost.Disconnect()

	taint := func(node string) bool {
		n, err := p.client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		return err == nil && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == corev1.TaintNodeUnreachable && t.Effect == corev1.TaintEffectNoExecute
		})
	}
	eventually(t, "both nodes are given up", func() bool { return taint("keeper") && taint("loser") })
	eventually(t, "the pod without autonomy is evicted", func() bool { return p.get(t, "on-loser").DeletionTimestamp != nil })
	got := p.get(t, "on-keeper")
	if got.DeletionTimestamp != nil || got.Status.Phase != corev1.PodRunning {
		t.Fatalf("the pod with autonomy: %v, deleted %v", got.Status.Phase, got.DeletionTimestamp)
	}
	ready := func() bool {
		return slices.ContainsFunc(p.get(t, "on-keeper").Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	}
	eventually(t, "the pod counts as not ready", func() bool { return !ready() })

	// Back again, without a word but Hello: node and pod become Ready.
	kept.Connect()
	eventually(t, "the node is Ready again", func() bool {
		n, err := p.client.CoreV1().Nodes().Get(t.Context(), "keeper", metav1.GetOptions{})
		return err == nil && report.NodeReady(n) && !taint("keeper")
	})
	eventually(t, "the pod is Ready again", ready)

	// Autonomy off gives the pod its seconds back.
	if _, err := p.client.CoreV1().Nodes().Patch(t.Context(), "keeper", "application/merge-patch+json", []byte(`{"metadata":{"annotations":{"holdfast.io/autonomy":"off"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod has its own tolerationSeconds again", func() bool {
		got := p.get(t, "on-keeper")
		return got.Annotations[roster.AnnotationTolerations] == "" && !slices.ContainsFunc(got.Spec.Tolerations, func(t corev1.Toleration) bool {
			return t.TolerationSeconds == nil || *t.TolerationSeconds != seconds
		})
	})
}
