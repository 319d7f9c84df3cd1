// Package journal remembers, in one file in the data directory, what init or
// join made on a machine, so that reset can undo that and nothing else.
// common/adm notes each thing before it makes it: a command that dies half way
// leaves a journal that reset can work with. It never removes anything itself.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-edge/holdfast/common/atomicfile"
)

// FileName is the journal's name in the data directory.
const FileName = "journal.json"

// The commands that keep a journal.
const (
	Init = "init"
	Join = "join"
)

// Journal is the file's content.
type Journal struct {
	Command string `json:"command"` // Init or Join
	// Files, Folders and Units were made by the command. A folder goes only when
	// nothing of somebody else is in it.
	Files   []string `json:"files,omitempty"`
	Folders []string `json:"folders,omitempty"`
	Units   []string `json:"units,omitempty"`

	// What a join was told.
	Node            string `json:"node,omitempty"`
	Hub             string `json:"hub,omitempty"`
	CAHash          string `json:"caHash,omitempty"`
	Config          string `json:"config,omitempty"`
	RunDir          string `json:"runDir,omitempty"`
	RuntimeEndpoint string `json:"runtimeEndpoint,omitempty"`
	PodLogsDir      string `json:"podLogsDir,omitempty"`
	CgroupRoot      string `json:"cgroupRoot,omitempty"`

	// What an init was told. Kubeconfig is the administrator's.
	Kubeconfig         string `json:"kubeconfig,omitempty"`
	ControlPlaneDir    string `json:"controlPlaneDir,omitempty"` // of the embedded control plane
	ControlPlaneListen string `json:"controlPlaneListen,omitempty"`

	path string
}

// Load reads the journal in dir; fs.ErrNotExist when there is none.
func Load(dir string) (*Journal, error) {
	path := filepath.Join(dir, FileName)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	j := &Journal{path: path}
	if err := json.Unmarshal(b, j); err != nil {
		return nil, fmt.Errorf("journal %s is damaged: %w; remove by hand what it lists, then the file", path, err)
	}
	return j, nil
}

// ErrForeign is wrapped by Open's error when the folder is somebody else's.
var ErrForeign = errors.New("the folder is used for something else")

// Open reads the journal in dir, or begins one for the command, which makes no
// file yet. A folder with other things in it is refused: everything in a data
// directory is Holdfast's, and reset removes it.
func Open(dir, command string) (*Journal, error) {
	j, err := Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("data directory: %w", err)
		}
		if len(entries) > 0 {
			return nil, fmt.Errorf("data directory %s: %w (it holds %s, and no journal of Holdfast): choose an empty one with --data-dir", dir, ErrForeign, entries[0].Name())
		}
		return &Journal{Command: command, path: filepath.Join(dir, FileName)}, nil
	}
	if err != nil {
		return nil, err
	}
	if j.Command != command {
		return nil, fmt.Errorf("data directory %s: %w (by `holdfast %s`): choose another with --data-dir", dir, ErrForeign, j.Command)
	}
	return j, nil
}

// Save writes the journal.
func (j *Journal) Save() error {
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return atomicfile.WriteIn(j.path, append(b, '\n'), 0o600)
}

// NoteFile remembers a file that is about to be made, and those folders above it
// that are. What exists already and is not in the journal is not ours and stays.
func (j *Journal) NoteFile(path string) error {
	if err := j.NoteFolder(filepath.Dir(path)); err != nil {
		return err
	}
	if slices.Contains(j.Files, path) || exists(path) {
		return nil
	}
	j.Files = append(j.Files, path)
	return j.Save()
}

// NoteFolder remembers a folder that is about to be made, and those above it.
func (j *Journal) NoteFolder(path string) error {
	if slices.Contains(j.Folders, path) || exists(path) {
		return nil
	}
	if err := j.NoteFolder(filepath.Dir(path)); err != nil {
		return err
	}
	j.Folders = append(j.Folders, path)
	return j.Save()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// NoteUnit remembers a unit.
func (j *Journal) NoteUnit(unit string) error {
	if slices.Contains(j.Units, unit) {
		return nil
	}
	j.Units = append(j.Units, unit)
	return j.Save()
}

// Made says whether the command made the file.
func (j *Journal) Made(path string) bool { return slices.Contains(j.Files, path) }
