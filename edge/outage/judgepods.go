package outage

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
)

func podSubject(p *corev1.Pod) string { return "pod " + p.Namespace + "/" + p.Name }

func judgePods(f Facts) []localstatus.Check {
	s := section{group: groupPods}
	if f.PodsErr != nil {
		s.fail("", "PodsUnreadable", f.PodsErr.Error(), "see edgecore's log: `journalctl -u edgecore`")
		return s.done("")
	}
	for _, u := range f.Unread {
		s.fail("pod "+u.Namespace+"/"+u.Name, "PodUnreadable", "edgecore cannot read it and leaves it alone: "+u.Err.Error(),
			fmt.Sprintf("have it made anew: `kubectl -n %s delete pod %s`, with --force if it does not go; if the new one cannot be read either, install the edgecore of the hub's version", u.Namespace, u.Name))
	}
	for i := range f.Pods {
		p := &f.Pods[i]
		if p.Summary == nil {
			continue
		}
		why := cmp.Or(p.Summary.Reason, p.Summary.Phase)
		switch {
		case refused(p):
			s.warn(podSubject(p.Pod), "PodRefused", "it is not run on this node: "+p.Summary.Message, "take out of the pod what edge nodes do not support")
		case !p.Summary.Ready:
			s.warn(podSubject(p.Pod), "PodNotReady", "it is not ready now ("+why+"), and a reboot will not mend it", fmt.Sprintf("kubectl -n %s describe pod %s", p.Pod.Namespace, p.Pod.Name))
		}
	}
	return s.done("%d to bring back", len(f.Pods))
}

// refused says that the node does not run the pod at all.
func refused(p *PodFacts) bool { return p.Summary != nil && p.Summary.Reason == "FieldNotSupported" }

func judgeImages(f Facts) []localstatus.Check {
	s := section{group: groupImages}
	if f.Runtime.Err != nil || f.ImagesErr != nil {
		err := cmp.Or(f.Runtime.Err, f.ImagesErr)
		s.fail("", "ImagesUnknown", "the container runtime does not tell which images there are: "+err.Error(), "systemctl status containerd")
		return s.done("")
	}
	there := byName(f.Images)
	needed := map[string]bool{}
	if f.Runtime.SandboxImage != "" {
		judgeSandboxImage(&s, f, there, needed)
	}
	for i := range f.Pods {
		if p := &f.Pods[i]; !refused(p) {
			judgeImagesOf(&s, p, there, needed)
		}
	}
	unpinned := 0
	for name := range needed {
		if !f.Pinned[name] && there[name] != nil {
			unpinned++
		}
	}
	if unpinned > 0 {
		why := "the next look pins them"
		if f.PinErr != nil {
			why = f.PinErr.Error()
		}
		s.warn("", "ImagesNotPinned", fmt.Sprintf("%d are not pinned (%s): a cleaning by hand, such as `crictl rmi --prune`, may take them", unpinned, why),
			"look at them with `ctr -n k8s.io images ls`; edgecore tries again every minute")
	}
	return s.done("%d, all on the node", len(needed))
}

func judgeSandboxImage(s *section, f Facts, there map[string]*runtime.NodeImage, needed map[string]bool) {
	image := f.Runtime.SandboxImage
	full, err := runtime.Normalize(image)
	if err == nil {
		needed[full] = true
	}
	if err != nil || there[full] == nil {
		s.fail("image "+image, "SandboxImageMissing", "the image of pod sandboxes is not on the node: no pod without it",
			"crictl pull "+image+", or import it: `ctr -n k8s.io images import FILE.tar`")
	}
}

// byName finds images by full reference and by id.
func byName(images []runtime.NodeImage) map[string]*runtime.NodeImage {
	out := make(map[string]*runtime.NodeImage, 2*len(images))
	for i := range images {
		out[images[i].ID] = &images[i]
		for _, name := range images[i].Names {
			out[name] = &images[i]
		}
	}
	return out
}

func judgeImagesOf(s *section, p *PodFacts, there map[string]*runtime.NodeImage, needed map[string]bool) {
	for _, c := range containers(p.Pod) {
		full, err := runtime.Normalize(c.Image)
		if err != nil {
			s.fail(podSubject(p.Pod), "ImageInvalid", err.Error(), "write another image into the pod")
			continue
		}
		needed[full] = true
		image := there[full]
		if image == nil {
			remedy := "while its registry can be reached: `crictl pull " + c.Image + "`; else import it: `ctr -n k8s.io images import FILE.tar`"
			if c.ImagePullPolicy == corev1.PullNever {
				remedy = "its imagePullPolicy is Never: import it with `ctr -n k8s.io images import FILE.tar`"
			}
			s.fail(podSubject(p.Pod), "ImageMissing", "image "+c.Image+" is not on the node", remedy)
			continue
		}
		if runs := runningImage(p.Summary, c.Name); runs != "" && !is(image, runs) {
			s.warn(podSubject(p.Pod), "ImageMoved", fmt.Sprintf("container %s runs another image than %s names now: after a reboot it runs the newer one", c.Name, c.Image),
				"name the image by its digest where that matters, or restart the pod now and see that it works")
		}
	}
}

// runningImage is the image that a running container was made from, as its status has it.
func runningImage(s *pod.Summary, container string) string {
	if s == nil {
		return ""
	}
	for i := range s.Containers {
		if c := &s.Containers[i]; c.Name == container && c.State == "running" {
			return c.ImageID
		}
	}
	return ""
}

// is says whether id names the image: by its id, or by a digest under any name.
func is(image *runtime.NodeImage, id string) bool {
	_, digest, ok := strings.Cut(id, "@")
	if id == image.ID || slices.Contains(image.Names, id) || ok && digest == image.ID {
		return true
	}
	return ok && slices.ContainsFunc(image.Names, func(name string) bool { return strings.HasSuffix(name, "@"+digest) })
}

func judgeObjects(f Facts) []localstatus.Check {
	s := section{group: groupObjects}
	needed := map[Object]bool{}
	for i := range f.Pods {
		p := &f.Pods[i]
		if refused(p) {
			continue
		}
		for _, r := range references(p.Pod) {
			keys := f.Objects[r.object]
			if keys != nil {
				needed[r.object] = true
			}
			if !r.optional {
				judgeReference(&s, p, r, keys)
			}
		}
	}
	configMaps, secrets := 0, 0
	for o := range needed {
		if o.Secret {
			secrets++
		} else {
			configMaps++
		}
	}
	return s.done("%d ConfigMaps and %d Secrets, all on the node", configMaps, secrets)
}

func judgeReference(s *section, p *PodFacts, r reference, keys Keys) {
	kind, command := "ConfigMap", "configmap"
	if r.object.Secret {
		kind, command = "Secret", "secret"
	}
	name := kind + " " + r.object.Name
	remedy := fmt.Sprintf("see that it exists: `kubectl -n %s get %s %s`; or mark the reference optional", r.object.Namespace, command, r.object.Name)
	missing := ""
	if keys == nil {
		missing = name + " is not on the node"
	} else {
		for _, k := range r.keys {
			if !keys[k] {
				missing = fmt.Sprintf("%s has no key %s", name, k)
			}
		}
	}
	switch {
	case missing == "":
	case r.pull:
		s.warn(podSubject(p.Pod), "PullSecretMissing", missing+": its images cannot be pulled anew where the registry wants it", remedy)
	case r.volume != "" && p.Shown[r.volume]:
		s.warn(podSubject(p.Pod), kind+"Gone", fmt.Sprintf("%s any more; volume %s keeps the last content", missing, r.volume), remedy)
	default:
		s.fail(podSubject(p.Pod), kind+"Missing", missing, remedy)
	}
}

func judgeTokens(f Facts) []localstatus.Check {
	s := section{group: groupTokens}
	kept := 0
	for i := range f.Pods {
		p := &f.Pods[i]
		if refused(p) {
			continue
		}
		if p.TokensErr != nil {
			s.fail(podSubject(p.Pod), "TokensUnreadable", p.TokensErr.Error(), "see edgecore's log: `journalctl -u edgecore`")
		}
		for _, t := range p.Tokens {
			what := "token of service account " + t.Account
			if t.Audience != "" {
				what += " for " + t.Audience
			}
			switch {
			case !t.Kept:
				s.fail(podSubject(p.Pod), "TokenMissing", "no "+what+" is kept", "the hub gives one while the line is up; `kubectl -n "+p.Pod.Namespace+" describe pod "+p.Pod.Name+"` says why it did not")
			case t.Ended:
				s.warn(podSubject(p.Pod), "TokenEnded", fmt.Sprintf("the %s ended %s: the pod starts with it, and no apiserver takes it", what, t.Expires.UTC().Format("2006-01-02 15:04 MST")),
					"it is renewed within a minute once the line is up")
				kept++
			default:
				kept++
			}
		}
	}
	return s.done("%d kept", kept)
}

func judgeVolumes(f Facts) []localstatus.Check {
	s := section{group: groupVolumes}
	volumes := 0
	for i := range f.Pods {
		p := &f.Pods[i]
		if refused(p) {
			continue
		}
		volumes += len(p.Pod.Spec.Volumes)
		for _, name := range slices.Sorted(maps.Keys(p.Hosts)) {
			for j := range p.Pod.Spec.Volumes {
				if v := &p.Pod.Spec.Volumes[j]; v.Name == name && v.HostPath != nil {
					judgeHostPath(&s, p, v, p.Hosts[name])
				}
			}
		}
	}
	return s.done("%d", volumes)
}

// judgeHostPath: what a type says may be made is made at the start.
func judgeHostPath(s *section, p *PodFacts, v *corev1.Volume, found HostPath) {
	want := corev1.HostPathUnset
	if v.HostPath.Type != nil {
		want = *v.HostPath.Type
	}
	kept := want == corev1.HostPathDirectory || want == corev1.HostPathFile
	switch {
	case want == corev1.HostPathUnset, want == corev1.HostPathDirectoryOrCreate, want == corev1.HostPathFileOrCreate:
	case found.Found != want:
		s.fail(podSubject(p.Pod), "HostPathMissing", fmt.Sprintf("volume %s: %s is not there as %s", v.Name, v.HostPath.Path, want),
			"make it on the node, or choose another type of hostPath")
	case kept && found.Fleeing:
		s.warn(podSubject(p.Pod), "HostPathInMemory", fmt.Sprintf("volume %s: %s lies in memory, and must be made anew after a reboot before the pod can start", v.Name, v.HostPath.Path),
			"see that something on the node makes it at boot, or choose the type DirectoryOrCreate or FileOrCreate")
	}
}
