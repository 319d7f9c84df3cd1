package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// file is one file of a volume with content.
type file struct {
	data []byte
	mode fs.FileMode // permission bits
	uid  *int64      // owner; nil is root
}

// owner says to whom a pod's files belong beside root.
type owner struct {
	group *int64 // fsGroup
}

func ownerOf(pod *corev1.Pod) owner {
	if sc := pod.Spec.SecurityContext; sc != nil {
		return owner{group: sc.FSGroup}
	}
	return owner{}
}

// The names that containers may rely on: the kubelet's.
const (
	dataLink    = "..data"
	dataLinkNew = "..data_tmp"
)

// written says whether a volume has content.
func written(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, dataLink))
	return err == nil
}

// writeAtomically makes the volume show exactly these files, and says whether that changed anything. The files lie in
// a directory of their own; ..data links to it and is swapped in one step, and each name at the top of the volume links
// through ..data. A reader who follows one path twice may see two states, one who opened ..data sees one.
//
// What is there is compared first, so that a reboot writes nothing. Whatever a power cut left behind (torn files,
// directories nobody links to, a link to nothing) differs and is replaced.
func writeAtomically(dir string, files map[string]file, o owner) (changed bool, err error) {
	for name := range files {
		if err := validName(name); err != nil {
			return false, err
		}
	}
	// The way to the volume is for root alone; only the volume itself, which containers see by itself, is open.
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return false, err
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	if err := ownDir(dir, o); err != nil {
		return false, err
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if old != "" && isGeneration(old) && same(filepath.Join(dir, old), files, o) {
		// The swap may have been all that was done before a power cut.
		return false, linkNames(dir, files, old)
	}
	gen, err := os.MkdirTemp(dir, "..gen-*")
	if err != nil {
		return false, err
	}
	if err := writeFiles(gen, files, o); err != nil {
		return false, errors.Join(err, removeTree(gen))
	}
	tmp := filepath.Join(dir, dataLinkNew)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(filepath.Base(gen), tmp); err != nil {
		return false, err
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	return true, linkNames(dir, files, filepath.Base(gen))
}

func isGeneration(name string) bool {
	return strings.HasPrefix(name, "..") && !strings.Contains(name, "/") && name != ".." && name != dataLink && name != dataLinkNew
}

func validName(name string) error {
	if name == "" || name == "." || len(name) > 4096 || !filepath.IsLocal(name) || filepath.Clean(name) != name || strings.HasPrefix(name, "..") || strings.ContainsRune(name, 0) {
		return fmt.Errorf("file name %q must be relative and without ..: %w", name, ErrInvalid)
	}
	for _, part := range strings.Split(name, "/") {
		if len(part) > 255 {
			return fmt.Errorf("file name %q is too long: %w", name, ErrInvalid)
		}
	}
	return nil
}

// ownDir lets the pod's group in.
func ownDir(dir string, o owner) error {
	mode := fs.FileMode(0o777)
	if o.group != nil {
		mode |= fs.ModeSetgid
		if err := os.Lchown(dir, 0, int(*o.group)); err != nil {
			return err
		}
	}
	return os.Chmod(dir, mode)
}

func writeFiles(gen string, files map[string]file, o owner) error {
	if err := dirMode(gen, o); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(gen, name)
		if parent := filepath.Dir(name); parent != "." {
			at := gen
			for _, part := range strings.Split(parent, "/") {
				at = filepath.Join(at, part)
				if err := os.Mkdir(at, 0o755); err != nil {
					if errors.Is(err, fs.ErrExist) {
						continue
					}
					return err
				}
				if err := dirMode(at, o); err != nil {
					return err
				}
			}
		}
		w, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		uid, gid, mode := wanted(f, o)
		_, err = w.Write(f.data)
		if uid != 0 || gid != 0 {
			err = errors.Join(err, w.Chown(uid, gid))
		}
		if err = errors.Join(err, w.Chmod(mode), w.Close()); err != nil {
			return err
		}
	}
	return nil
}

func dirMode(dir string, o owner) error {
	mode := fs.FileMode(0o755)
	if o.group != nil {
		if err := os.Lchown(dir, 0, int(*o.group)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	return os.Chmod(dir, mode)
}

// wanted is the owner and mode of a file: the pod's group may read whatever the mode says.
func wanted(f file, o owner) (uid, gid int, mode fs.FileMode) {
	mode = f.mode & 0o777
	if f.uid != nil {
		uid = int(*f.uid)
	}
	if o.group != nil {
		gid = int(*o.group)
		mode |= 0o440
	}
	return uid, gid, mode
}

// same compares a generation with what it should be: names, bytes, modes and owners.
func same(gen string, files map[string]file, o owner) bool {
	found := 0
	err := filepath.WalkDir(gen, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(gen, path)
		if err != nil {
			return err
		}
		want, ok := files[name]
		if !ok || !d.Type().IsRegular() {
			return fs.ErrExist
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		uid, gid, mode := wanted(want, o)
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || info.Mode().Perm() != mode || int(st.Uid) != uid || int(st.Gid) != gid || info.Size() != int64(len(want.data)) {
			return fs.ErrExist
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, want.data) {
			return fs.ErrExist
		}
		found++
		return nil
	})
	return err == nil && found == len(files)
}

// linkNames makes the names at the top of the volume, and removes those of files that are gone and generations other
// than the one in use.
func linkNames(dir string, files map[string]file, gen string) error {
	want := map[string]bool{}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		want[first] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case name == dataLink || name == gen:
			continue
		case want[name] && e.Type() == fs.ModeSymlink:
			if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && to == filepath.Join(dataLink, name) {
				delete(want, name)
				continue
			}
		}
		// A link whose name is wanted no more, an old generation, or what a container of a privileged pod put here.
		if err := removeTree(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for name := range want {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
