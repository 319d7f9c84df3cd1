package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

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

// Pin sees to it that exactly these images (full references) carry this node's pin. One that is not on the node is left
// out. Pins are labels of containerd's own records: CRI has no word for them. Nothing is written where all is as it
// should be. On an error the outcome says what holds as far as is known.
func (r *Runtime) Pin(ctx context.Context, want []string) (Pins, error) {
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
		if !ours || slices.Contains(want, image.Name) {
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

// SandboxImage is the image that an existing sandbox was made from, for a runtime whose Setup does not tell (containerd
// 2.x); empty when there is no sandbox, or it does not tell either.
func (r *Runtime) SandboxImage(ctx context.Context) string {
	list, err := r.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil || len(list.Items) == 0 {
		return ""
	}
	st, err := r.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: list.Items[0].Id, Verbose: true})
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
