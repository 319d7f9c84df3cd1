package runtime

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"path"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Auth is one credential for a registry.
type Auth struct {
	Username, Password, Auth     string
	ServerAddress                string
	IdentityToken, RegistryToken string
}

// dockerEntry is one registry's entry in a docker configuration.
type dockerEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of user:password
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Keyring holds the credentials of a pod's image pull secrets.
type Keyring struct {
	entries []keyringEntry
}

type keyringEntry struct {
	host string // may hold * as one label's wildcard, and a port
	path string // "" or a prefix of the image's path
	auth Auth
}

// Add takes the credentials of a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg. An entry
// that cannot be understood is an error that names the Secret and the registry, and never the credential; the entries
// before and after it are taken all the same.
func (k *Keyring) Add(s *corev1.Secret) error {
	name := s.Namespace + "/" + s.Name
	entries := map[string]dockerEntry{}
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var cfg struct {
			Auths map[string]dockerEntry `json:"auths"`
		}
		if err := json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &cfg); err != nil {
			return fmt.Errorf("image pull secret %s: %s is not a docker configuration: %w", name, corev1.DockerConfigJsonKey, hideValue(err))
		}
		entries = cfg.Auths
	case corev1.SecretTypeDockercfg:
		if err := json.Unmarshal(s.Data[corev1.DockerConfigKey], &entries); err != nil {
			return fmt.Errorf("image pull secret %s: %s is not a docker configuration: %w", name, corev1.DockerConfigKey, hideValue(err))
		}
	default:
		return fmt.Errorf("image pull secret %s: type %q holds no registry credentials; use %s", name, s.Type, corev1.SecretTypeDockerConfigJson)
	}
	registries := make([]string, 0, len(entries))
	for r := range entries {
		registries = append(registries, r)
	}
	sort.Strings(registries)
	var firstErr error
	for _, r := range registries {
		e, err := keyringFor(r, entries[r])
		if err != nil {
			if firstErr == nil {
				firstErr = fmt.Errorf("image pull secret %s: registry %q: %w", name, r, err)
			}
			continue
		}
		k.entries = append(k.entries, e)
	}
	return firstErr
}

// hideValue keeps what a decoder quotes from the secret out of logs and events.
func hideValue(err error) error {
	switch e := err.(type) { //nolint:errorlint // encoding/json returns these unwrapped
	case *json.SyntaxError:
		return fmt.Errorf("invalid JSON at byte %d", e.Offset)
	case *json.UnmarshalTypeError:
		return fmt.Errorf("field %s must not be a JSON %s", e.Field, strings.SplitN(e.Value, " ", 2)[0])
	default:
		return fmt.Errorf("invalid JSON")
	}
}

func keyringFor(registry string, e dockerEntry) (keyringEntry, error) {
	out := keyringEntry{auth: Auth{
		Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken,
	}}
	if e.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(e.Auth))
		if err != nil {
			raw, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(e.Auth), "="))
		}
		if err != nil {
			return out, fmt.Errorf("its auth is not base64")
		}
		user, password, ok := strings.Cut(string(raw), ":")
		if !ok {
			return out, fmt.Errorf("its auth is not user:password")
		}
		out.auth.Username, out.auth.Password = user, strings.TrimRight(password, "\x00")
	}
	// A registry is written as a host, as host/path, or as a URL of the old form https://host/v1/.
	rest := registry
	if !strings.Contains(rest, "://") {
		rest = "https://" + rest
	}
	u, err := url.Parse(rest)
	if err != nil || u.Host == "" {
		return out, fmt.Errorf("it is not a host name")
	}
	out.host = u.Host
	if out.host == "index.docker.io" || out.host == "registry-1.docker.io" {
		out.host = defaultRegistry
	}
	p := strings.Trim(u.Path, "/")
	if p == "v1" || p == "v2" {
		p = ""
	}
	p = strings.TrimPrefix(strings.TrimPrefix(p, "v1/"), "v2/")
	out.path = p
	return out, nil
}

// For lists the credentials that fit an image, the most particular path first. It is empty when none fits: then the
// image is pulled anonymously.
func (k *Keyring) For(image string) []Auth {
	full, err := Normalize(image)
	if err != nil {
		return nil
	}
	host, p, _ := strings.Cut(full, "/")
	var fit []keyringEntry
	for _, e := range k.entries {
		if hostMatches(e.host, host) && strings.HasPrefix(p, e.path) {
			fit = append(fit, e)
		}
	}
	sort.SliceStable(fit, func(i, j int) bool { return len(fit[i].path) > len(fit[j].path) })
	out := make([]Auth, 0, len(fit))
	seen := map[Auth]bool{}
	for _, e := range fit {
		if !seen[e.auth] {
			seen[e.auth] = true
			out = append(out, e.auth)
		}
	}
	return out
}

// hostMatches compares a registry of a secret with that of an image, label by label; a label of the secret may hold
// wildcards, a port has to be the same.
func hostMatches(pattern, host string) bool {
	ph, pp := splitPort(pattern)
	hh, hp := splitPort(host)
	if pp != hp {
		return false
	}
	pl, hl := strings.Split(ph, "."), strings.Split(hh, ".")
	if len(pl) != len(hl) {
		return false
	}
	for i := range pl {
		if ok, err := path.Match(pl[i], hl[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func splitPort(hostport string) (host, port string) {
	if h, p, err := net.SplitHostPort(hostport); err == nil {
		return h, p
	}
	return hostport, ""
}
