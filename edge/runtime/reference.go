package runtime

import (
	"fmt"
	"strings"
)

// defaultRegistry is what a reference without a registry means, by Kubernetes' own rule.
const defaultRegistry = "docker.io"

// Normalize writes an image reference in full, as containerd names images: registry, path, and a tag or digest.
// "busybox" becomes docker.io/library/busybox:latest. The error wraps ErrInvalidImage.
func Normalize(ref string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("image %q: %s: %w", ref, why, ErrInvalidImage)
	}
	if ref == "" {
		return bad("it is empty")
	}
	if len(ref) > 4096 {
		return bad("it is too long")
	}
	// What containerd calls an image by its ID stays what it is.
	if hex, ok := strings.CutPrefix(ref, "sha256:"); ok && len(hex) == 64 && isHex(hex) {
		return ref, nil
	}
	rest, digest, hasDigest := strings.Cut(ref, "@")
	if hasDigest {
		algo, hex, ok := strings.Cut(digest, ":")
		if !ok || algo == "" || len(hex) < 32 || !isHex(hex) {
			return bad("its digest must look like sha256:<64 hexadecimal digits>")
		}
		if algo == "sha256" && len(hex) != 64 {
			return bad("a sha256 digest has 64 hexadecimal digits")
		}
	}
	name, tag := rest, ""
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.Contains(rest[i:], "/") {
		name, tag = rest[:i], rest[i+1:]
		if !validTag(tag) {
			return bad("its tag must be 1 to 128 letters, digits, '_', '.' or '-'")
		}
	}
	registry, path, ok := strings.Cut(name, "/")
	if !ok || !(strings.ContainsAny(registry, ".:") || registry == "localhost") {
		registry, path = defaultRegistry, name
	}
	if registry == "index.docker.io" {
		registry = defaultRegistry
	}
	if registry == defaultRegistry && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	if !validRegistry(registry) {
		return bad("its registry is no host name")
	}
	for _, part := range strings.Split(path, "/") {
		if !validPathPart(part) {
			return bad("its name must be lower-case letters and digits, with single '.', '_', '__' or dashes between them")
		}
	}
	out := registry + "/" + path
	switch {
	case hasDigest:
		out += "@" + digest // a tag beside a digest says nothing; containerd drops it too
	case tag != "":
		out += ":" + tag
	default:
		out += ":latest"
	}
	return out, nil
}

// registryOf is the registry's host, with its port if it has one, of a normalised reference.
func registryOf(full string) string {
	host, _, _ := strings.Cut(full, "/")
	return host
}

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}

func alnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func validTag(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !alnum(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// validPathPart holds for letters and digits, separated by one dot, one or two underscores, or any number of dashes.
func validPathPart(s string) bool {
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if alnum(s[i]) {
			i++
			continue
		}
		j := i
		for j < len(s) && s[j] == s[i] {
			j++
		}
		switch n := j - i; {
		case s[i] == '-', s[i] == '.' && n == 1, s[i] == '_' && n <= 2:
		default:
			return false
		}
		if !alnum(s[j]) { // s ends with a letter or digit, so j is within it
			return false
		}
		i = j
	}
	return true
}

func validRegistry(s string) bool {
	host, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return false
		}
		host, port = s[1:end], strings.TrimPrefix(s[end+1:], ":")
		for i := 0; i < len(host); i++ {
			if c := host[i]; !isHex(strings.ToLower(string(c))) && c != ':' && c != '.' {
				return false
			}
		}
		return host != "" && digits(port)
	}
	if h, p, ok := strings.Cut(s, ":"); ok {
		host, port = h, p
		if port == "" {
			return false
		}
	}
	for _, label := range strings.Split(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := 0; i < len(label); i++ {
			if c := label[i]; !alnum(c) && (c < 'A' || c > 'Z') && c != '-' {
				return false
			}
		}
	}
	return digits(port)
}

func digits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) <= 5
}
