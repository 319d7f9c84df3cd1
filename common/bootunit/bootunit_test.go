package bootunit

import (
	"os"
	"path/filepath"
	"testing"
)

// system makes a machine of files, path to content; a content that begins with -> is a link.
func system(t *testing.T, files map[string]string) System {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if len(text) > 2 && text[:2] == "->" {
			err = os.Symlink(text[2:], full)
		} else {
			err = os.WriteFile(full, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return System{Root: root}
}

func TestUnitsAreFoundByTheirLinks(t *testing.T) {
	const unit = "[Unit]\nWants=containerd.service other.service\n"
	s := system(t, map[string]string{
		"/etc/systemd/system/edgecore.service":                         unit,
		"/etc/systemd/system/multi-user.target.wants/edgecore.service": "->/etc/systemd/system/edgecore.service",
		"/lib/systemd/system/containerd.service":                       "[Unit]\n",
		"/usr/lib/systemd/system/dbus.service":                         "[Unit]\n",
		"/usr/lib/systemd/system/sockets.target.requires/dbus.service": "->../dbus.service",
		"/lib/systemd/system/gone.service":                             "[Unit]\n",
		"/etc/systemd/system/gone.service":                             "->/dev/null",
		"/run/systemd/system/x.target.wants/volatile.service":          "->/nowhere",
	})
	for name, want := range map[string]State{"edgecore.service": Enabled, "containerd.service": Disabled, "dbus.service": Enabled,
		"gone.service": Masked, "none.service": Absent, "volatile.service": Absent} {
		if got := s.Unit(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if !s.Wants("edgecore.service", "containerd.service") || s.Wants("edgecore.service", "dbus.service") || s.Wants("none.service", "dbus.service") {
		t.Error("what edgecore's unit wants is not read")
	}
	if !s.Runs() || (System{Root: t.TempDir()}).Runs() {
		t.Error("whether systemd runs is not seen")
	}
}

func TestTheOwnUnitIsReadFromTheCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/edgecore.service\n":                                                 "edgecore.service",
		"12:memory:/system.slice/wrong.service\n1:name=systemd:/system.slice/right.service\n": "right.service",
		"0::/system.slice/edgecore.service/sub\n":                                             "edgecore.service",
		"0::/user.slice/user-1000.slice/session-3.scope\n":                                    "",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n":              "",
		"0::/\n": "",
		"":       "",
	} {
		if got := system(t, map[string]string{"/proc/self/cgroup": text}).Own(); got != want {
			t.Errorf("%q: unit %q, want %q", text, got, want)
		}
	}
}
