package outage

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/bootunit"
	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/edge/credential"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

const (
	webImage   = "example.test/web:1"
	pauseImage = "example.test/pause:3"
)

var now = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

// webPod is a pod with a bit of everything.
func webPod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1"}}
	p.Spec.Containers = []corev1.Container{{Name: "main", Image: webImage,
		EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "env"}}}},
		Env: []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "key"}, Key: "k"}}}},
	}}
	p.Spec.Volumes = []corev1.Volume{
		{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
		{Name: "api", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "root-ca"}}},
		}}}},
	}
	return p
}

// sound are the facts of a node with which all is well.
func sound() Facts {
	return Facts{
		SyncedOnce: true,
		Runtime: RuntimeFacts{Endpoint: "unix:///run/containerd/containerd.sock", SandboxImage: pauseImage, CNIConfDir: "/etc/cni/net.d", CNIConfigs: 1,
			Info: runtime.Info{Name: "containerd", Version: "1.7.24", Ready: true, NetworkReady: true}},
		Pods: []PodFacts{{Pod: webPod(), Summary: &pod.Summary{Phase: "Running", Ready: true, Containers: []pod.ContainerSummary{{Name: "main", State: "running", ImageID: "example.test/web@sha256:aa"}}},
			Tokens: []pod.TokenKept{{Volume: "api", Account: "till", Kept: true, Expires: now.Add(time.Hour)}}, Shown: map[string]bool{}, Hosts: map[string]HostPath{}}},
		Objects: map[Object]Keys{{false, "shop", "env"}: {}, {true, "shop", "key"}: {"k": true}, {false, "shop", "conf"}: {"x": true}, {false, "shop", "root-ca"}: {"ca.crt": true}},
		Images: []runtime.NodeImage{{ID: "sha256:1", Names: []string{"example.test/web@sha256:aa", webImage}},
			{ID: "sha256:2", Names: []string{pauseImage}}},
		Pinned:      map[string]bool{webImage: true, pauseImage: true},
		Database:    DatabaseFacts{Path: "/d/store.db", Opened: time.Hour, Health: store.Health{GoodCopy: now, Reserve: true, Free: 1 << 30, Bytes: 8 << 30}},
		Clock:       ClockFacts{System: now, Floor: now},
		Certificate: CertificateFacts{Now: now, Dates: credential.Dates{RenewalDue: now.AddDate(0, 4, 0), Ends: now.AddDate(0, 8, 0)}},
		Boot: BootFacts{Systemd: true, Unit: "edgecore.service", State: bootunit.Enabled,
			RuntimeUnit: "containerd.service", RuntimeState: bootunit.Enabled},
	}
}

// hosted gives the pod a hostPath volume of that type, at which found lies.
func hosted(f *Facts, want corev1.HostPathType, found HostPath) {
	f.Pods[0].Pod.Spec.Volumes = append(f.Pods[0].Pod.Spec.Volumes, corev1.Volume{Name: "h",
		VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv/x", Type: &want}}})
	f.Pods[0].Hosts["h"] = found
}

func TestASoundNodeIsReady(t *testing.T) {
	checks := Judge(sound())
	if v := Conclude(checks); !v.Ready || v.Reason != "AllChecksPassed" {
		t.Errorf("verdict %+v", v)
	}
	groups := map[string]int{}
	for _, c := range checks {
		if c.Level != localstatus.CheckOK || c.Message == "" {
			t.Errorf("%+v", c)
		}
		groups[c.Group]++
	}
	if len(groups) != 11 || len(checks) != 11 {
		t.Errorf("groups %v, want each of eleven once", groups)
	}
}

// TestWhatIsAmiss: each change of a sound node leads to this one finding.
func TestWhatIsAmiss(t *testing.T) {
	const warning, failing = localstatus.CheckWarning, localstatus.CheckFailing
	for name, c := range map[string]struct {
		change func(*Facts)
		level  string
		reason string
		words  string // of subject, message and remedy
	}{
		"never synced":           {func(f *Facts) { f.SyncedOnce = false }, failing, "NeverSynced", "holdfast status"},
		"runtime not read":       {func(f *Facts) { f.Runtime.Info.Ready = false }, failing, "RuntimeNotReady", "journalctl -u containerd"},
		"no network":             {func(f *Facts) { f.Runtime.Info.NetworkReady = false; f.Runtime.Info.Reason = "cni" }, failing, "NetworkNotReady", "cni"},
		"no CNI files":           {func(f *Facts) { f.Runtime.CNIConfigs = 0 }, failing, "NoNetworkConfig", "/etc/cni/net.d"},
		"pause unknown":          {func(f *Facts) { f.Runtime.SandboxImage = "" }, failing, "SandboxImageUnknown", "containerd 1.7.24 delete a pod pauseImage containerd config dump"},
		"pause unknown, no pods": {func(f *Facts) { f.Runtime.SandboxImage, f.Pods = "", nil }, warning, "SandboxImageUnknown", "pauseImage"},
		"pause missing":          {func(f *Facts) { f.Images = f.Images[:1] }, failing, "SandboxImageMissing", pauseImage},
		"images unknown":         {func(f *Facts) { f.ImagesErr = errors.New("boom") }, failing, "ImagesUnknown", "boom"},

		"image missing": {func(f *Facts) { f.Images = f.Images[1:] }, failing, "ImageMissing", "pod shop/web image " + webImage + " crictl pull"},
		"image missing, never pulled": {func(f *Facts) {
			f.Images = f.Images[1:]
			f.Pods[0].Pod.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
		}, failing, "ImageMissing", "Never"},
		"image of an init container missing": {func(f *Facts) {
			f.Pods[0].Pod.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "example.test/init"}}
		}, failing, "ImageMissing", "example.test/init"},
		"image invalid": {func(f *Facts) { f.Pods[0].Pod.Spec.Containers[0].Image = "No Such" }, failing, "ImageInvalid", "No Such"},
		"image moved":   {func(f *Facts) { f.Pods[0].Summary.Containers[0].ImageID = "example.test/web@sha256:bb" }, warning, "ImageMoved", webImage},
		"not pinned":    {func(f *Facts) { f.Pinned = nil; f.PinErr = errors.New("denied") }, warning, "ImagesNotPinned", "denied"},

		"pods unreadable": {func(f *Facts) { f.PodsErr = errors.New("disk") }, failing, "PodsUnreadable", "disk"},
		"pod unreadable": {func(f *Facts) {
			f.Unread = []store.UnreadPod{{Namespace: "shop", Name: "till", UID: "u9", Err: errors.New("unexpected EOF")}}
		}, failing, "PodUnreadable", "pod shop/till unexpected EOF kubectl -n shop delete pod till"},
		"pod refused": {func(f *Facts) {
			f.Pods[0].Summary.Reason, f.Pods[0].Summary.Message = "FieldNotSupported", "spec.volumes[x].persistentVolumeClaim"
			f.Images = f.Images[1:] // which it does not need, then
		}, warning, "PodRefused", "persistentVolumeClaim"},
		"pod not ready": {func(f *Facts) { f.Pods[0].Summary.Ready = false; f.Pods[0].Summary.Reason = "CrashLoopBackOff" }, warning, "PodNotReady", "CrashLoopBackOff"},

		"configMap missing":     {func(f *Facts) { f.Objects[Object{false, "shop", "env"}] = nil }, failing, "ConfigMapMissing", "ConfigMap env kubectl -n shop get configmap env"},
		"configMap of a volume": {func(f *Facts) { f.Objects[Object{false, "shop", "conf"}] = nil }, failing, "ConfigMapMissing", "ConfigMap conf"},
		"configMap shown": {func(f *Facts) {
			f.Objects[Object{false, "shop", "conf"}] = nil
			f.Pods[0].Shown["conf"] = true
		}, warning, "ConfigMapGone", "keeps the last content"},
		"projected configMap": {func(f *Facts) { f.Objects[Object{false, "shop", "root-ca"}] = nil }, failing, "ConfigMapMissing", "root-ca"},
		"secret missing":      {func(f *Facts) { f.Objects[Object{true, "shop", "key"}] = nil }, failing, "SecretMissing", "Secret key"},
		"key missing":         {func(f *Facts) { f.Objects[Object{true, "shop", "key"}] = Keys{"other": true} }, failing, "SecretMissing", "has no key k"},
		"pull secret missing": {func(f *Facts) {
			f.Pods[0].Pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "registry"}}
		}, warning, "PullSecretMissing", "registry"},

		"token missing":     {func(f *Facts) { f.Pods[0].Tokens[0].Kept = false }, failing, "TokenMissing", "service account till"},
		"token ended":       {func(f *Facts) { f.Pods[0].Tokens[0].Ended = true }, warning, "TokenEnded", "2030-06-01 13:00 UTC"},
		"tokens unreadable": {func(f *Facts) { f.Pods[0].TokensErr = errors.New("disk") }, failing, "TokensUnreadable", "disk"},

		"hostPath missing":   {func(f *Facts) { hosted(f, corev1.HostPathDirectory, HostPath{}) }, failing, "HostPathMissing", "/srv/x"},
		"hostPath is a file": {func(f *Facts) { hosted(f, corev1.HostPathDirectory, HostPath{Found: corev1.HostPathFile}) }, failing, "HostPathMissing", "Directory"},
		"hostPath in memory": {func(f *Facts) {
			hosted(f, corev1.HostPathDirectory, HostPath{Found: corev1.HostPathDirectory, Fleeing: true})
		}, warning, "HostPathInMemory", "DirectoryOrCreate"},

		"database in memory": {func(f *Facts) { f.Database.Fleeing = true }, failing, "DatabaseInMemory", "dataDir"},
		"database damaged":   {func(f *Facts) { f.Database.Checked, f.Database.CheckErr = true, errors.New("page 7") }, failing, "DatabaseDamaged", "page 7"},
		"database restored":  {func(f *Facts) { f.Database.Recovery = &store.Recovery{Reason: "page 7"} }, warning, "DatabaseRestored", "SD card"},
		"disk full":          {func(f *Facts) { f.Database.Health.Free = 1 << 20 }, failing, "DiskFull", "1 MiB"},
		"disk low":           {func(f *Facts) { f.Database.Health.Free = 100 << 20 }, warning, "DiskLow", "100 MiB"},
		"no copy":            {func(f *Facts) { f.Database.Health.GoodCopy = time.Time{} }, warning, "NoGoodCopy", "fall back"},
		"no reserve":         {func(f *Facts) { f.Database.Health.Reserve = false }, warning, "NoReserve", "room"},
		"disk unknown":       {func(f *Facts) { f.Database.HealthErr = errors.New("EIO") }, warning, "DiskUnknown", "EIO"},

		"no floor":     {func(f *Facts) { f.Clock.Floor = time.Time{} }, warning, "ClockFloorUnknown", "1970"},
		"clock behind": {func(f *Facts) { f.Clock.System = time.Unix(0, 0) }, warning, "ClockBehind", "1970-01-01"},

		"no certificate":          {func(f *Facts) { f.Certificate.Err = errors.New("no node.crt") }, failing, "CertificateMissing", "holdfast join"},
		"certificate not renewed": {func(f *Facts) { f.Certificate.Now = now.AddDate(0, 5, 0) }, warning, "CertificateNotRenewed", "2030-10-01"},
		"certificate ended":       {func(f *Facts) { f.Certificate.Now = now.AddDate(0, 9, 0) }, warning, "CertificateEnded", "2031-02-01"},
		"certificate void":        {func(f *Facts) { f.Certificate.Now = now.AddDate(1, 0, 0) }, failing, "CertificateVoid", "holdfast join"},

		"no systemd":             {func(f *Facts) { f.Boot = BootFacts{} }, warning, "NoSystemd", "nothing starts edgecore at boot"},
		"by hand":                {func(f *Facts) { f.Boot.Unit = "" }, warning, "NotAUnit", "by hand"},
		"unit not enabled":       {func(f *Facts) { f.Boot.State = bootunit.Disabled }, failing, "UnitNotEnabled", "systemctl enable edgecore.service"},
		"runtime not enabled":    {func(f *Facts) { f.Boot.RuntimeState = bootunit.Disabled }, failing, "RuntimeUnitNotEnabled", "systemctl enable containerd.service"},
		"runtime masked":         {func(f *Facts) { f.Boot.RuntimeState, f.Boot.RuntimeWants = bootunit.Masked, true }, failing, "RuntimeUnitNotEnabled", "unmask"},
		"runtime's unit unknown": {func(f *Facts) { f.Boot.RuntimeUnit = "" }, warning, "RuntimeUnitUnknown", "containerd.sock"},
		"runtime's unit absent":  {func(f *Facts) { f.Boot.RuntimeState = bootunit.Absent }, warning, "RuntimeUnitUnknown", "no such unit"},
	} {
		t.Run(name, func(t *testing.T) {
			f := sound()
			c.change(&f)
			checks := Judge(f)
			bad := slices.DeleteFunc(slices.Clone(checks), func(c localstatus.Check) bool { return c.Level == localstatus.CheckOK })
			if len(bad) != 1 || bad[0].Level != c.level || bad[0].Reason != c.reason || bad[0].Remedy == "" {
				t.Fatalf("found %+v, want one %s %s with a remedy", bad, c.level, c.reason)
			}
			text := bad[0].Subject + " " + bad[0].Message + " " + bad[0].Remedy
			at := 0
			for _, word := range strings.Fields(c.words) {
				i := strings.Index(text[at:], word)
				if i < 0 {
					t.Fatalf("%q does not say %q", text, c.words)
				}
				at += i
			}
			if v := Conclude(checks); v.Ready != (c.level == warning) || !v.Ready && v.Reason != c.reason {
				t.Errorf("verdict %+v", v)
			}
		})
	}
}

// TestWhatIsNotAmiss: none of these is a finding.
func TestWhatIsNotAmiss(t *testing.T) {
	yes := true
	for name, change := range map[string]func(*Facts){
		"optional references": func(f *Facts) {
			f.Objects = nil
			p := f.Pods[0].Pod
			p.Spec.Containers[0].EnvFrom[0].ConfigMapRef.Optional = &yes
			p.Spec.Containers[0].Env[0].ValueFrom.SecretKeyRef.Optional = &yes
			p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", Optional: &yes}}}}
		},
		"an image by its digest": func(f *Facts) {
			f.Pods[0].Pod.Spec.Containers[0].Image = "example.test/web:9@sha256:" + strings.Repeat("a", 64)
			f.Images[0].Names = append(f.Images[0].Names, "example.test/web@sha256:"+strings.Repeat("a", 64))
			f.Pinned["example.test/web@sha256:"+strings.Repeat("a", 64)] = true
		},
		"an imported image, which has no digest": func(f *Facts) { f.Pods[0].Summary.Containers[0].ImageID = "sha256:1" },
		"hostPath that is made":                  func(f *Facts) { hosted(f, corev1.HostPathDirectoryOrCreate, HostPath{}) },
		"a device, which the kernel makes": func(f *Facts) {
			hosted(f, corev1.HostPathCharDev, HostPath{Found: corev1.HostPathCharDev, Fleeing: true})
		},
		"a runtime that edgecore's unit starts": func(f *Facts) { f.Boot.RuntimeState, f.Boot.RuntimeWants = bootunit.Disabled, true },
		"a minute old, and not copied yet": func(f *Facts) {
			f.Database.Opened, f.Database.Health.GoodCopy = time.Minute, time.Time{}
			f.Database.Health.Reserve = false
		},
		"no pods":                             func(f *Facts) { f.Pods = nil },
		"a pod of which nothing is known yet": func(f *Facts) { f.Pods[0].Summary = nil },
		"a clock that is ahead":               func(f *Facts) { f.Clock.System = now.AddDate(30, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			f := sound()
			change(&f)
			for _, c := range Judge(f) {
				if c.Level != localstatus.CheckOK {
					t.Errorf("%+v", c)
				}
			}
		})
	}
}

func TestFindingsAndMessagesAreBounded(t *testing.T) {
	f := sound()
	f.Images = f.Images[1:] // the sandboxes'
	f.Pods = nil
	for i := range 500 {
		p := webPod()
		p.Name = strings.Repeat("ä", 100) + fmt.Sprint(i)
		f.Pods = append(f.Pods, PodFacts{Pod: p})
	}
	checks := Judge(f)
	images := slices.DeleteFunc(slices.Clone(checks), func(c localstatus.Check) bool { return c.Group != groupImages })
	if len(images) != maxFindings+1 || images[maxFindings].Message != "and 450 more" || images[maxFindings].Level != localstatus.CheckFailing {
		t.Errorf("%d findings, the last %+v", len(images), images[len(images)-1])
	}
	v := Conclude(checks)
	if v.Ready || v.Reason != "ImageMissing" || len(v.Message) > maxMessage || !strings.Contains(v.Message, "more; `holdfast doctor`") || strings.ToValidUTF8(v.Message, "") != v.Message {
		t.Errorf("verdict of %d bytes: %+v", len(v.Message), v)
	}
}

func TestTheConditionHoldsStill(t *testing.T) {
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	good, image, token := Verdict{true, "AllChecksPassed", "m"}, Verdict{false, "ImageMissing", "m"}, Verdict{false, "TokenMissing", "m"}
	for name, steps := range map[string][]struct {
		second  int
		see     Verdict
		changed bool
		shown   string // reason; empty: none is known
	}{
		"good at once":                     {{0, good, true, "AllChecksPassed"}, {60, good, false, "AllChecksPassed"}},
		"bad from the start waits":         {{0, image, false, ""}, {29, image, false, ""}, {30, image, true, "ImageMissing"}},
		"a pull in between is not told":    {{0, good, true, "AllChecksPassed"}, {3, image, false, "AllChecksPassed"}, {20, good, false, "AllChecksPassed"}, {40, image, false, "AllChecksPassed"}},
		"first the image, then the token":  {{0, good, true, "AllChecksPassed"}, {3, image, false, "AllChecksPassed"}, {20, token, false, "AllChecksPassed"}, {33, token, true, "TokenMissing"}},
		"another reason lasts before told": {{0, image, false, ""}, {30, image, true, "ImageMissing"}, {60, token, false, "ImageMissing"}, {70, image, false, "ImageMissing"}, {80, token, false, "ImageMissing"}, {110, token, true, "TokenMissing"}},
		"mended must last":                 {{0, image, false, ""}, {30, image, true, "ImageMissing"}, {31, good, false, "ImageMissing"}, {150, good, false, "ImageMissing"}, {151, good, true, "AllChecksPassed"}},
		"mended for a moment is not told":  {{0, image, false, ""}, {30, image, true, "ImageMissing"}, {60, good, false, "ImageMissing"}, {90, image, false, "ImageMissing"}, {120, good, false, "ImageMissing"}, {200, good, false, "ImageMissing"}, {240, good, true, "AllChecksPassed"}},
		"mended, and another is amiss":     {{0, image, false, ""}, {30, image, true, "ImageMissing"}, {60, good, false, "ImageMissing"}, {90, token, false, "ImageMissing"}, {120, token, true, "TokenMissing"}},
		"good at last after the start":     {{0, image, false, ""}, {20, good, true, "AllChecksPassed"}},
	} {
		t.Run(name, func(t *testing.T) {
			var s settled
			for _, step := range steps {
				changed := s.see(step.see, at(step.second), false)
				if changed != step.changed || s.shown.Reason != step.shown || s.known != (step.shown != "") {
					t.Fatalf("at %d s: changed %v, shown %q; want %v, %q", step.second, changed, s.shown.Reason, step.changed, step.shown)
				}
			}
		})
	}
}

// TestWhoAsksSeesTheConditionAtOnce: `holdfast doctor` after the mending tells the cloud, too.
func TestWhoAsksSeesTheConditionAtOnce(t *testing.T) {
	n := newNode(t)
	n.holdAll()
	n.runtime.set(func() { n.runtime.images = []string{pauseImage} })
	n.checker.Look(t.Context(), false)
	n.checker.mu.Lock()
	n.checker.settled.since = n.checker.settled.since.Add(-settleFor) // so long ago
	n.checker.mu.Unlock()
	n.checker.Look(t.Context(), false)
	if v, known := n.checker.Verdict(); !known || v.Reason != "ImageMissing" {
		t.Fatalf("verdict %+v, %v", v, known)
	}
	n.runtime.set(func() { n.runtime.images = []string{pauseImage, webImage} })
	for _, asked := range []bool{false, true} {
		out := n.checker.Look(t.Context(), asked)
		if v, _ := n.checker.Verdict(); !out.Ready || v.Ready != asked {
			t.Errorf("asked %v: found %v, condition %+v", asked, out.Ready, v)
		}
	}
}
