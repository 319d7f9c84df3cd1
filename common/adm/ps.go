package adm

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/common/adm/show"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// PsOptions say which containers Ps lists.
type PsOptions struct {
	StatusOptions
	Namespace string // empty: all
	All       bool   // ended ones too
}

// Ps prints the containers of the pods of the edge node on this machine.
func (a *App) Ps(ctx context.Context, o PsOptions) error {
	if err := o.checkOutput(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	s, err := o.askEdge(ctx)
	if err != nil {
		return err
	}
	pods := slices.DeleteFunc(slices.Clone(s.Pods), func(p localstatus.PodSummary) bool { return o.Namespace != "" && p.Namespace != o.Namespace })
	for i := range pods {
		pods[i].Containers = slices.DeleteFunc(slices.Clone(pods[i].Containers), func(c localstatus.Container) bool {
			return c.State == localstatus.StateExited && !o.All
		})
	}
	return a.show(o.Output, pods, func() error { return show.Containers(a.Out, s, pods) })
}

// Target names a container of a pod on this machine, as a person does.
type Target struct {
	StatusOptions
	Pod       string // NAME or NAMESPACE/NAME
	Namespace string
	Container string // empty: the pod's default
}

// place is a container that there is.
type place struct{ namespace, pod, container string }

// find asks edgecore which container is meant. Where a pod has several and none is
// named it says which was taken.
func (a *App) find(ctx context.Context, t Target) (place, error) {
	namespace, name := t.Namespace, t.Pod
	if ns, rest, ok := strings.Cut(t.Pod, "/"); ok {
		if namespace != "" && namespace != ns {
			return place{}, usage("the pod is named %s, and --namespace says %s", t.Pod, namespace)
		}
		namespace, name = ns, rest
	}
	if name == "" || strings.Contains(name, "/") {
		return place{}, usage("the pod %q is not NAME or NAMESPACE/NAME", t.Pod)
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	s, err := t.askEdge(ctx)
	if err != nil {
		return place{}, err
	}
	p, err := choosePod(s.Pods, namespace, name)
	if err != nil {
		return place{}, err
	}
	container, err := a.chooseContainer(p, t.Container)
	return place{p.Namespace, p.Name, container}, err
}

func choosePod(pods []localstatus.PodSummary, namespace, name string) (localstatus.PodSummary, error) {
	var found []localstatus.PodSummary
	var names, all []string
	for _, p := range pods {
		all = append(all, p.Namespace+"/"+p.Name)
		if p.Name != name || namespace != "" && p.Namespace != namespace {
			continue
		}
		if len(found) > 0 && found[len(found)-1].Namespace == p.Namespace {
			continue // one that ends, and one that takes its place
		}
		found, names = append(found, p), append(names, p.Namespace+"/"+p.Name)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return localstatus.PodSummary{}, usage("pod %s is in several namespaces: name one of %s", name, list(names))
	case len(all) == 0:
		return localstatus.PodSummary{}, fmt.Errorf("this node has no pod %s, and no other", name)
	}
	if namespace != "" {
		name = namespace + "/" + name
	}
	return localstatus.PodSummary{}, fmt.Errorf("this node has no pod %s; it has %s", name, list(all))
}

// chooseContainer is the one that is named, or that the pod's annotation names, or the
// first, as kubectl chooses.
func (a *App) chooseContainer(p localstatus.PodSummary, name string) (string, error) {
	var all, regular []string
	for _, c := range p.Containers {
		all = append(all, c.Name)
		if c.Kind == "" {
			regular = append(regular, c.Name)
		}
	}
	pod := p.Namespace + "/" + p.Name
	switch {
	case len(all) == 0:
		return "", fmt.Errorf("nothing is known of the containers of pod %s before the container runtime has answered: `holdfast status` says why it has not", pod)
	case name != "" && !slices.Contains(all, name):
		return "", fmt.Errorf("pod %s has no container %s; it has %s", pod, name, list(all))
	case name != "":
		return name, nil
	}
	name = cmp.Or(p.DefaultContainer, append(regular, all...)[0])
	if !slices.Contains(all, name) {
		name = append(regular, all...)[0] // the annotation names none of this pod
	}
	if len(regular) > 1 {
		fmt.Fprintf(a.Err, "container %s of pod %s, which has %s: name another with -c\n", name, pod, list(regular))
	}
	return name, nil
}
