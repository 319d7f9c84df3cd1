package cri

import (
	"context"
	"fmt"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Labels that edge/runtime puts on containerd's records of the images that pods need:
// the pin itself, and that it is Holdfast's.
const (
	labelPinned   = "io.cri-containerd.pinned"
	labelPinnedBy = "holdfast.io/pinned"
)

// Unpin takes away the pins that an edge node has put on images, and no others. It
// returns how many there were.
func (r *Runtime) Unpin(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io"), answerWithin)
	defer cancel()
	images := imagesapi.NewImagesClient(r.conn)
	list, err := images.List(ctx, &imagesapi.ListImagesRequest{Filters: []string{`labels."` + labelPinnedBy + `"`}})
	if err != nil {
		return 0, fmt.Errorf("list the pinned images: %w", err)
	}
	for i, image := range list.Images {
		_, err := images.Update(ctx, &imagesapi.UpdateImageRequest{
			Image:      &imagesapi.Image{Name: image.Name, Labels: map[string]string{labelPinned: "", labelPinnedBy: ""}}, // empty: taken away
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + labelPinned, "labels." + labelPinnedBy}},
		})
		if err != nil {
			return i, fmt.Errorf("unpin image %s: %w", image.Name, err)
		}
	}
	return len(list.Images), nil
}
