package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/tests/rig/image"
)

func small(t *testing.T, name, content string) *image.Image {
	t.Helper()
	img, err := image.Build(image.Spec{
		Name: name,
		Files: []image.File{
			{Path: "a/b/file", Mode: 0o640, Data: []byte(content)},
			{Path: "a/b/link", Link: "file"},
			{Path: "tmp/", Mode: 0o1777},
		},
		Entrypoint: []string{"/a/b/file"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// untar gives the entries in their order, and the content of each.
func untar(t *testing.T, b []byte) (names []string, content map[string][]byte) {
	t.Helper()
	content = map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, content
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		content[h.Name] = data
	}
}

func TestArchiveHoldsWhatTheIndexNames(t *testing.T) {
	img := small(t, "example.test/holdfast/small:1", "hello")
	if again := small(t, "example.test/holdfast/small:1", "hello"); again.Digest != img.Digest {
		t.Errorf("the same image has digests %s and %s", img.Digest, again.Digest)
	}
	var archive bytes.Buffer
	if err := img.WriteArchive(&archive); err != nil {
		t.Fatal(err)
	}
	_, files := untar(t, archive.Bytes())
	blob := func(digest string) []byte {
		b, ok := files["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")]
		sum := sha256.Sum256(b)
		if !ok || "sha256:"+hex.EncodeToString(sum[:]) != digest {
			t.Fatalf("blob %s is missing or has other content", digest)
		}
		return b
	}
	var index, manifest struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != img.Name {
		t.Fatalf("index %s", files["index.json"])
	}
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil {
		t.Fatal(err)
	}
	blob(manifest.Config.Digest)
	names, layer := untar(t, blob(manifest.Layers[0].Digest))
	if got := strings.Join(names, " "); got != "a/ a/b/ a/b/file a/b/link tmp/" {
		t.Errorf("the layer has %s", got)
	}
	if got := string(layer["a/b/file"]); got != "hello" {
		t.Errorf("the file holds %q", got)
	}
}

func TestBuildRefusesANameWithoutTag(t *testing.T) {
	for _, name := range []string{"", "busybox", "busybox:1", "example.test/busybox", "example.test/:1"} {
		if _, err := image.Build(image.Spec{Name: name}); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
}

func TestRegistryServesByTagAndDigest(t *testing.T) {
	reg, err := image.NewRegistry(image.RegistryOptions{Addr: "127.0.0.1:0", Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	}()
	img := small(t, "example.test/deep/er/small:1", "hello")
	other := small(t, "example.test/other:1", "bye")
	reg.Add(img)
	reg.Add(other)
	ask := func(method, path, password string) (int, []byte, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, reg.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("u", password)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, b, err
	}
	manifest := img.Blobs[img.Digest]
	for _, c := range []struct {
		method, path, password string
		status                 int
		body                   []byte // nil: not looked at
	}{
		{"GET", "/v2/", "p", 200, nil},
		{"GET", "/v2/", "wrong", 401, nil},
		{"GET", "/v2/deep/er/small/manifests/1", "p", 200, manifest},
		{"GET", "/v2/deep/er/small/manifests/" + img.Digest, "p", 200, manifest},
		{"HEAD", "/v2/deep/er/small/manifests/1", "p", 200, []byte{}},
		{"GET", "/v2/deep/er/small/blobs/" + img.Digest, "p", 200, manifest},
		{"GET", "/v2/deep/er/small/manifests/2", "p", 404, nil},
		{"GET", "/v2/deep/er/small/manifests/" + other.Digest, "p", 404, nil},
		{"GET", "/v2/deep/er/small/blobs/" + other.Digest, "p", 404, nil},
		{"PUT", "/v2/deep/er/small/manifests/1", "p", 405, nil},
		{"GET", "/elsewhere", "p", 404, nil},
	} {
		status, body, err := ask(c.method, c.path, c.password)
		if err != nil || status != c.status || c.body != nil && !bytes.Equal(body, c.body) {
			t.Errorf("%s %s: status %d, error %v, %d bytes", c.method, c.path, status, err, len(body))
		}
	}
	if n := len(reg.Requests()); n != 11 {
		t.Errorf("%d requests are recorded", n)
	}
	reg.ForgetRequests()
	reg.SetDown(true)
	if status, _, err := ask("GET", "/v2/", "p"); err == nil {
		t.Errorf("a registry that is down answered %d", status)
	}
	if r := reg.Requests(); len(r) == 0 || r[0].Status != 0 {
		t.Errorf("requests while down: %v", r)
	}
}
