package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What can be told of a pull that failed. All other failures carry the runtime's words only.
var (
	// ErrInvalidImage is wrapped for a reference that no registry could ever resolve.
	ErrInvalidImage = errors.New("invalid image reference")
	// ErrImageNotFound is wrapped when the registry says that it has no such image.
	ErrImageNotFound = errors.New("the registry has no such image")
	// ErrUnauthorized is wrapped when the registry refused every credential, or the anonymous try.
	ErrUnauthorized = errors.New("the registry refused the credentials")
	// ErrRegistryUnreachable is wrapped when the registry could not be asked at all: no line, no name service, no answer.
	ErrRegistryUnreachable = errors.New("the registry cannot be reached")
)

// Image says whether an image is on this node, and by which ID containers should be created from it.
func (r *Runtime) Image(ctx context.Context, ref string) (id string, present bool, err error) {
	full, err := Normalize(ref)
	if err != nil {
		return "", false, err
	}
	resp, err := r.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: full}})
	if err != nil {
		if err = wrap(err); errors.Is(err, ErrNotFound) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("image %s: %w", ref, err)
	}
	if resp.GetImage() == nil {
		return "", false, nil
	}
	return resp.Image.Id, true, nil
}

// NodeImage is an image on this node, for the node's status.
type NodeImage struct {
	ID    string
	Names []string // digests first, then tags
	Size  int64    // bytes, compressed
	// Pinned: no garbage collection takes it. A containerd before 1.6.26 says so of no
	// image but the sandboxes'.
	Pinned bool
}

// Images lists the images on this node.
func (r *Runtime) Images(ctx context.Context) ([]NodeImage, error) {
	resp, err := r.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", wrap(err))
	}
	out := make([]NodeImage, 0, len(resp.Images))
	for _, i := range resp.Images {
		names := append(append([]string(nil), i.RepoDigests...), i.RepoTags...)
		out = append(out, NodeImage{ID: i.Id, Names: names, Size: int64(i.Size), Pinned: i.Pinned})
	}
	return out, nil
}

// Pull fetches an image, with each of the credentials in turn until one is accepted, or anonymously when there are none.
// It takes as long as the line needs: bound it by ctx. It returns the ID by which containers are created. The error
// wraps ErrImageNotFound, ErrUnauthorized, ErrRegistryUnreachable or ErrInvalidImage as far as they can be told apart.
func (r *Runtime) Pull(ctx context.Context, ref string, auths []Auth) (string, error) {
	full, err := Normalize(ref)
	if err != nil {
		return "", err
	}
	if len(auths) == 0 {
		auths = []Auth{{}}
	}
	var failures []error
	for _, a := range auths {
		req := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: full, UserSpecifiedImage: ref}}
		if a != (Auth{}) {
			req.Auth = &cri.AuthConfig{
				Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress,
				IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
			}
		}
		resp, err := r.images.PullImage(ctx, req)
		if err == nil {
			return resp.ImageRef, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return "", fmt.Errorf("pull image %s: %w", ref, r.pullError(ctx, full, failures))
}

// pullError joins the runtime's words to a class. Only gRPC codes and what a connection to the registry does decide;
// texts differ from one containerd to the next.
func (r *Runtime) pullError(ctx context.Context, full string, failures []error) error {
	err := failures[len(failures)-1]
	text := status.Convert(err).Message()
	if ctx.Err() != nil {
		return &callError{kind: ctx.Err(), text: text}
	}
	switch status.Code(err) {
	case codes.NotFound:
		return &callError{kind: ErrImageNotFound, text: text}
	case codes.Unauthenticated, codes.PermissionDenied:
		return &callError{kind: ErrUnauthorized, text: text}
	case codes.InvalidArgument:
		return &callError{kind: ErrInvalidImage, text: text}
	case codes.Unavailable:
		if !r.answers(ctx) {
			return &callError{kind: ErrUnavailable, text: text}
		}
		return &callError{kind: ErrRegistryUnreachable, text: text}
	case codes.DeadlineExceeded:
		return &callError{kind: ErrRegistryUnreachable, text: text}
	}
	if !r.RegistryReachable(ctx, full) {
		return &callError{kind: ErrRegistryUnreachable, text: text}
	}
	return errors.New(text)
}

func (r *Runtime) answers(ctx context.Context) bool {
	_, err := r.version(ctx)
	return err == nil
}

// reach is what is known of one registry: asked at most once in reachFor.
type reach struct {
	ok    bool
	until time.Time
}

const (
	reachFor     = 15 * time.Second
	reachTimeout = 3 * time.Second
	maxReach     = 64 // registries remembered; a node uses a handful
)

// RegistryReachable says whether the registry of an image can be connected to. A caller that has the image on the node
// and would only look for a newer one (imagePullPolicy Always) asks this first: without a line a pull takes a minute
// to fail, and every pod of the node would wait for it after a reboot. An answer holds for 15 seconds. A registry with
// mirrors configured in containerd counts as reachable: only containerd knows whom it would ask.
func (r *Runtime) RegistryReachable(ctx context.Context, ref string) bool {
	full, err := Normalize(ref)
	if err != nil {
		return false
	}
	host := registryOf(full)
	r.mu.Lock()
	known, found := r.registries[host]
	r.mu.Unlock()
	if found && time.Now().Before(known.until) {
		return known.ok
	}
	ok := r.hasMirror(ctx, host) || dials(ctx, host)
	if ctx.Err() != nil {
		return ok
	}
	r.mu.Lock()
	if len(r.registries) >= maxReach {
		clear(r.registries)
	}
	r.registries[host] = reach{ok: ok, until: time.Now().Add(reachFor)}
	r.mu.Unlock()
	return ok
}

// hasMirror says whether containerd is configured to ask somebody else for a registry's images. A containerd that does
// not tell where its hosts.toml files are is taken to use the documented place.
func (r *Runtime) hasMirror(ctx context.Context, host string) bool {
	dirs := []string{"/etc/containerd/certs.d"}
	cfg := r.pluginConfig(ctx)
	if cfg.Registry.ConfigPath != "" {
		dirs = filepath.SplitList(cfg.Registry.ConfigPath)
	}
	names := []string{host, "_default"}
	if h, port, ok := strings.Cut(host, ":"); ok {
		names = append(names, h+"_"+port+"_")
	}
	for _, d := range dirs {
		for _, n := range names {
			if exists(filepath.Join(d, n, "hosts.toml")) {
				return true
			}
		}
	}
	return len(cfg.Registry.Mirrors) > 0
}

// dials tries the registry's own port, or 443 and then 80, which is where containerd would ask.
func dials(ctx context.Context, host string) bool {
	if host == defaultRegistry {
		host = "registry-1.docker.io"
	}
	addresses := []string{host}
	if _, _, err := net.SplitHostPort(host); err != nil {
		addresses = []string{net.JoinHostPort(strings.Trim(host, "[]"), "443"), net.JoinHostPort(strings.Trim(host, "[]"), "80")}
	}
	d := net.Dialer{Timeout: reachTimeout}
	for _, a := range addresses {
		conn, err := d.DialContext(ctx, "tcp", a)
		if err == nil {
			conn.Close()
			return true
		}
	}
	return false
}
