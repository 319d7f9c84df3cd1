package roster

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
)

func pod() *corev1.Pod {
	seconds := int64(300)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "till", UID: "u1", ResourceVersion: "5", Generation: 1,
			Labels:      map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"},
			Annotations: map[string]string{"x": "1", "y": "2", "z": "3"},
		},
		Spec: corev1.PodSpec{
			NodeName:    "n",
			Tolerations: []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds}},
			Containers:  []corev1.Container{{Name: "main", Image: "example.test/till:1"}},
		},
	}
}

func version(t *testing.T, p *corev1.Pod) []byte {
	t.Helper()
	item, err := Pod(p)
	if err != nil {
		t.Fatal(err)
	}
	return item.Ref.Version
}

func TestAPodIsTheSameVersionUntilANodeMustKnow(t *testing.T) {
	now := metav1.NewTime(time.Unix(1_800_000_000, 0))
	want := version(t, pod())
	for name, test := range map[string]struct {
		change func(*corev1.Pod)
		same   bool
	}{
		"nothing":                  {func(*corev1.Pod) {}, true},
		"its status":               {func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }, true},
		"its resource version":     {func(p *corev1.Pod) { p.ResourceVersion = "6" }, true},
		"who manages which field":  {func(p *corev1.Pod) { p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}} }, true},
		"a finalizer":              {func(p *corev1.Pod) { p.Finalizers = []string{"f"} }, true},
		"tolerations for autonomy": {func(p *corev1.Pod) { p.Spec.Tolerations[0].TolerationSeconds = nil }, true},
		"autonomy's annotation":    {func(p *corev1.Pod) { p.Annotations[AnnotationTolerations] = "[]" }, true},
		"who owns its node":        {func(p *corev1.Pod) { p.Annotations[AnnotationEpoch] = "7" }, true},
		"what kubectl remembers":   {func(p *corev1.Pod) { p.Annotations[corev1.LastAppliedConfigAnnotation] = "{}" }, true},
		"what a scheduler reads":   {func(p *corev1.Pod) { p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{}} }, true},
		"an annotation":            {func(p *corev1.Pod) { p.Annotations["x"] = "2" }, false},
		"its end":                  {func(p *corev1.Pod) { p.DeletionTimestamp = &now }, false},
		"an image":                 {func(p *corev1.Pod) { p.Spec.Containers[0].Image = "example.test/till:2" }, false},
		"a container for debugging": {func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d"}}}
		}, false},
	} {
		p := pod()
		test.change(p)
		if got := version(t, p); bytes.Equal(got, want) != test.same {
			t.Errorf("%s changes: same version is %v, want %v", name, !test.same, test.same)
		}
	}
}

// A container that reads all annotations of its pod sees what a kubelet would
// show it.
func TestAPodThatReadsItsAnnotationsGetsThemAll(t *testing.T) {
	field := &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations"}
	files := []corev1.DownwardAPIVolumeFile{{Path: "a", FieldRef: field}}
	for name, reads := range map[string]func(*corev1.PodSpec){
		"a variable": func(s *corev1.PodSpec) {
			s.Containers[0].Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['x']"}}}}
		},
		"a file": func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: files}}}}
		},
		"a projected file": func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{DownwardAPI: &corev1.DownwardAPIProjection{Items: files}}},
			}}}}
		},
	} {
		p := pod()
		reads(&p.Spec)
		plain := version(t, p)
		p.Annotations[AnnotationEpoch] = "7"
		if !bytes.Equal(version(t, p), plain) {
			t.Errorf("%s: the epoch is another version", name)
		}
		p.Annotations[corev1.LastAppliedConfigAnnotation] = "{}"
		if bytes.Equal(version(t, p), plain) {
			t.Errorf("%s: what kubectl last applied is missing", name)
		}
	}
}

func TestEncodingTwiceGivesTheSameBytesAndChangesNothing(t *testing.T) {
	p := pod()
	before := p.DeepCopy()
	item, err := Pod(p)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		o, err := item.Object()
		if err != nil || !bytes.Equal(wire.Version(o.Payload), item.Ref.Version) {
			t.Fatalf("another encoding: %v", err)
		}
	}
	if !reflect.DeepEqual(p, before) {
		t.Error("the pod itself was changed")
	}
}

func TestANodeIsNotToldOfItsOwnSilence(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", Labels: map[string]string{"l": "1"}}}
	a, err := Node(n)
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: &now}}
	n.Annotations = map[string]string{AnnotationConditions: "[]", AnnotationHub: "h", AnnotationEpoch: "7", "node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true"}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	b, err := Node(n)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Ref.Version, b.Ref.Version) {
		t.Error("a silent node is another version")
	}
	n.Annotations["holdfast.io/autonomy"] = "off"
	c, err := Node(n)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(b.Ref.Version, c.Ref.Version) {
		t.Error("an annotation of the user's is no other version")
	}
}

func TestReferencesAreAllThatANodeReadsForAPod(t *testing.T) {
	local := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	env := func(n string) []corev1.EnvVar {
		return []corev1.EnvVar{
			{Name: "L", Value: "literal"},
			{ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local("env-" + n)}}},
			{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local("env-" + n)}}},
		}
	}
	from := []corev1.EnvFromSource{
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("from")}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local("from")}},
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d"}, Spec: corev1.PodSpec{
		ImagePullSecrets:    []corev1.LocalObjectReference{local("pull")},
		InitContainers:      []corev1.Container{{Env: env("init")}},
		Containers:          []corev1.Container{{Env: env("main"), EnvFrom: from}, {EnvFrom: from}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Env: env("debug")}}},
		Volumes: []corev1.Volume{
			{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("volume")}}},
			{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "volume"}}},
			{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("projected")}},
				{Secret: &corev1.SecretProjection{LocalObjectReference: local("projected")}},
			}}}},
			{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		},
	}}
	var got []string
	for _, k := range References(p) {
		got = append(got, strings.ReplaceAll(k.String(), "d/", ""))
	}
	var want []string
	for _, kind := range []string{"configmap", "secret"} {
		names := []string{"env-debug", "env-init", "env-main", "from", "projected", "volume"}
		if kind == "secret" {
			names = append(names, "pull")
			slices.Sort(names)
		}
		for _, n := range names {
			want = append(want, kind+" "+n)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestNothingIsDeletedThatIsNotKnownToBeGone(t *testing.T) {
	ref := func(kind wire.Kind, name string) *wire.ObjectRef {
		return &wire.ObjectRef{Kind: kind, Namespace: "d", Name: name, Uid: "uid-" + name, Version: bytes.Repeat([]byte{1}, wire.VersionLen)}
	}
	podRef, cm, secret := ref(wire.Kind_KIND_POD, "p"), ref(wire.Kind_KIND_CONFIG_MAP, "c"), ref(wire.Kind_KIND_SECRET, "s")
	have := HeldOf([]*wire.ObjectRef{podRef, cm, secret})
	empty := func() *Wanted { return &Wanted{} }
	say := func(c Change) string {
		var out []string
		for _, r := range c.Deletes {
			out = append(out, r.Name)
		}
		return fmt.Sprintf("delete %v, confirm %d", out, len(c.Unconfirmed))
	}
	gone := map[ID]bool{IDOf(podRef): true}
	unknown := empty()
	unknown.Unknown = map[Key]bool{KeyOf(secret): true}
	held := empty()
	held.Held = map[ID]bool{IDOf(podRef): true}
	for name, test := range map[string]struct {
		want *Wanted
		gone map[ID]bool
		says string
	}{
		"a pod that caches miss keeps all": {empty(), nil, "delete [], confirm 1"},
		"confirmed, pods go first":         {empty(), gone, "delete [p s c], confirm 0"},
		"an unreadable Secret stays":       {unknown, gone, "delete [p c], confirm 0"},
		"a pod that is held back stays":    {held, nil, "delete [s c], confirm 0"},
	} {
		if got := say(Diff(test.want, have, test.gone)); got != test.says {
			t.Errorf("%s: %s, want %s", name, got, test.says)
		}
	}
}
