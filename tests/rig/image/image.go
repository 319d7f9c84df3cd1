// Package image makes container images out of nothing but local files, and serves them: where no registry
// can be reached, tests import the archive, or pull from a Registry on a local address.
//
// It is called by package rig and by tests. It never downloads anything, and knows no runtime: an Image is
// bytes in the OCI image layout.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
)

// Media types of the OCI image specification.
const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// File is one entry of an image's single layer: a directory if its Path ends with a slash, a symbolic link
// if Link is set, else a regular file.
type File struct {
	Path string
	Mode int64 // permission bits; zero: 0755
	Link string
	Data []byte
}

// Spec says what an image holds and how it runs.
type Spec struct {
	Name       string // with tag, e.g. example.test/holdfast/web:1
	Files      []File // parent directories are added where they are missing
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	StopSignal string
}

// Image is a built image for this machine's architecture. The same Spec always gives the same bytes.
type Image struct {
	Name   string
	Digest string            // of the manifest, sha256:...
	Blobs  map[string][]byte // digest -> manifest, config and layer
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Build makes the image.
func Build(s Spec) (*Image, error) {
	if _, _, ok := splitName(s.Name); !ok {
		return nil, fmt.Errorf("image name %q is not of the form host/repository:tag", s.Name)
	}
	layer, err := layerTar(s.Files)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Name, err)
	}
	img := &Image{Name: s.Name, Blobs: map[string][]byte{}}
	layerDesc := img.add(mediaLayer, layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": map[string]any{
			"Entrypoint": s.Entrypoint, "Cmd": s.Cmd, "Env": s.Env, "User": s.User,
			"WorkingDir": s.WorkingDir, "StopSignal": s.StopSignal,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDesc.Digest}},
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Name, err)
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaManifest,
		"config":        img.add(mediaConfig, config),
		"layers":        []descriptor{layerDesc},
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Name, err)
	}
	img.Digest = img.add(mediaManifest, manifest).Digest
	return img, nil
}

func (i *Image) add(mediaType string, b []byte) descriptor {
	sum := sha256.Sum256(b)
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: len(b)}
	i.Blobs[d.Digest] = b
	return d
}

// WriteArchive writes the image as an OCI archive, which `ctr images import` reads.
func (i *Image) WriteArchive(w io.Writer) error {
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaIndex,
		"manifests": []descriptor{{
			MediaType: mediaManifest, Digest: i.Digest, Size: len(i.Blobs[i.Digest]),
			// The first is where containerd looks for the whole name, the second what the specification has.
			Annotations: map[string]string{"io.containerd.image.name": i.Name, "org.opencontainers.image.ref.name": i.Name},
		}},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	t := tar.NewWriter(w)
	write := func(name string, b []byte) {
		if err == nil {
			err = t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), Typeflag: tar.TypeReg})
		}
		if err == nil {
			_, err = t.Write(b)
		}
	}
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write("index.json", index)
	for _, digest := range slices.Sorted(maps.Keys(i.Blobs)) {
		write("blobs/sha256/"+strings.TrimPrefix(digest, "sha256:"), i.Blobs[digest])
	}
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		return fmt.Errorf("write archive of image %s: %w", i.Name, err)
	}
	return nil
}

// layerTar writes the files, each after the directories above it.
func layerTar(files []File) ([]byte, error) {
	var buf bytes.Buffer
	t := tar.NewWriter(&buf)
	made := map[string]bool{".": true}
	var mkdir func(dir string, mode int64) error
	mkdir = func(dir string, mode int64) error {
		if made[dir] {
			return nil
		}
		if err := mkdir(path.Dir(dir), 0o755); err != nil {
			return err
		}
		made[dir] = true
		return t.WriteHeader(&tar.Header{Name: dir + "/", Mode: mode, Typeflag: tar.TypeDir})
	}
	for _, f := range files {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		mode := f.Mode
		if mode == 0 {
			mode = 0o755
		}
		if strings.HasSuffix(f.Path, "/") {
			if err := mkdir(name, mode); err != nil {
				return nil, fmt.Errorf("directory %s: %w", f.Path, err)
			}
			continue
		}
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return nil, fmt.Errorf("directory of %s: %w", f.Path, err)
		}
		h := &tar.Header{Name: name, Mode: mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg}
		if f.Link != "" {
			h = &tar.Header{Name: name, Mode: 0o777, Linkname: f.Link, Typeflag: tar.TypeSymlink}
		}
		if err := t.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.Path, err)
		}
		if f.Link == "" {
			if _, err := t.Write(f.Data); err != nil {
				return nil, fmt.Errorf("file %s: %w", f.Path, err)
			}
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// splitName parts host/repository:tag.
func splitName(name string) (repository, tag string, ok bool) {
	host, rest, ok := strings.Cut(name, "/")
	if !ok || host == "" {
		return "", "", false
	}
	repository, tag, ok = strings.Cut(rest, ":")
	return repository, tag, ok && repository != "" && tag != ""
}
