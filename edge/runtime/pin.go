package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels of containerd's records of images. By the first its CRI plugin (1.6.26, 1.7.9 and all of 2.x; older ones
// ignore it) calls an image pinned, which `crictl rmi --prune` and a kubelet's garbage collection leave alone. The second
// says that the first is ours: what somebody else has pinned is never unpinned here.
const (
	labelPinned    = "io.cri-containerd.pinned"
	labelPinnedBy  = "holdfast.io/pinned"
	pinnedValue    = "pinned"
	namespaceTitle = "containerd-namespace" // gRPC metadata by which containerd knows the namespace
)

// Pins are the outcome of Pin.
type Pins struct {
	Pinned  map[string]bool // full references, whoever pinned them
	Changed int             // pinned or unpinned this time
}

// Pin sees to it that these images (full references) carry this node's pin, and where they are all that is needed, that
// no other does. One that is not on the node is left out. Pins are labels of containerd's own records: CRI has no word for them. Nothing is written where all is as it
// should be. On an error the outcome says what holds as far as is known.
func (r *Runtime) Pin(ctx context.Context, want []string, all bool) (Pins, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, namespaceTitle, criNamespace)
	client := imagesapi.NewImagesClient(r.conn)
	out := Pins{Pinned: map[string]bool{}}
	list, err := client.List(ctx, &imagesapi.ListImagesRequest{Filters: []string{`labels."` + labelPinned + `"==` + pinnedValue, `labels."` + labelPinnedBy + `"`}})
	if err != nil {
		return out, fmt.Errorf("list pinned images: %w", wrap(err))
	}
	var errs []error
	for _, image := range list.Images {
		ours := image.Labels[labelPinnedBy] != ""
		out.Pinned[image.Name] = image.Labels[labelPinned] == pinnedValue
		if !ours || !all || slices.Contains(want, image.Name) {
			continue
		}
		if err := label(ctx, client, image.Name, ""); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(out.Pinned, image.Name)
		out.Changed++
	}
	for _, name := range want {
		if out.Pinned[name] {
			continue
		}
		switch err := label(ctx, client, name, pinnedValue); {
		case err == nil:
			out.Pinned[name] = true
			out.Changed++
		case !errors.Is(err, ErrNotFound):
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

// label sets both labels of a record, or takes them away where value is empty.
func label(ctx context.Context, client imagesapi.ImagesClient, name, value string) error {
	labels := map[string]string{labelPinned: value, labelPinnedBy: value}
	_, err := client.Update(ctx, &imagesapi.UpdateImageRequest{
		Image:      &imagesapi.Image{Name: name, Labels: labels},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + labelPinned, "labels." + labelPinnedBy}},
	})
	if err != nil {
		return fmt.Errorf("pin image %s: %w", name, wrap(err))
	}
	return nil
}

// Setup is what the runtime tells of how it is set up, as far as a node must know it to come back from a reboot. What it
// does not tell is empty.
type Setup struct {
	SandboxImage string
	CNIConfDir   string
}

// Setup asks for it.
func (r *Runtime) Setup(ctx context.Context) Setup {
	c := r.pluginConfig(ctx)
	return Setup{SandboxImage: c.SandboxImage, CNIConfDir: c.CNI.ConfDir}
}

// RunningSandboxes are the ids of all sandboxes that run, the newest first, with when they were made by the wall clock.
// One that does not run may be of an earlier boot, when the clock showed whatever it did.
func (r *Runtime) RunningSandboxes(ctx context.Context) ([]MadeSandbox, error) {
	list, err := r.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{
		Filter: &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", wrap(err))
	}
	out := make([]MadeSandbox, 0, len(list.Items))
	for _, s := range list.Items {
		out = append(out, MadeSandbox{ID: s.Id, Made: when(s.CreatedAt)})
	}
	slices.SortFunc(out, func(a, b MadeSandbox) int { return b.Made.Compare(a.Made) })
	return out, nil
}

// MadeSandbox is a sandbox by its id, and when it was made.
type MadeSandbox struct {
	ID   string
	Made time.Time
}

// SandboxImage is the image that a sandbox was made from; empty where the runtime does not tell. containerd 2.x tells of
// its configured one in no other way: that is in the configuration of its image service, which Status leaves out
// (containerd/containerd#11114 would put it where it was up to 1.7).
func (r *Runtime) SandboxImage(ctx context.Context, id string) string {
	st, err := r.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return ""
	}
	var info struct {
		Image string `json:"image"`
	}
	if json.Unmarshal([]byte(st.Info["info"]), &info) != nil {
		return ""
	}
	return info.Image
}
