package adm

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-edge/holdfast/common/adm/convert"
)

// ConvertOptions say which manifests of KubeEdge to turn into Holdfast's.
type ConvertOptions struct {
	// Files are files, folders whose YAML and JSON files are meant, or - for In.
	Files      []string
	Output     string // a file; empty or -: the App's Out
	SkipOthers bool   // pass over what is not KubeEdge's devices, models and rules
	In         io.Reader
	Warnings   io.Writer // one line each
}

// ConvertDevices writes the converted manifests, or, when anything cannot be
// converted, nothing but what is wrong.
func (a *App) ConvertDevices(o ConvertOptions) error {
	var objects []convert.Object
	for _, name := range o.Files {
		found, err := manifestsOf(name, o.In)
		if err != nil {
			return err
		}
		objects = append(objects, found...)
	}
	result, err := convert.Convert(objects, o.SkipOthers)
	if result != nil {
		for _, w := range result.Warnings {
			fmt.Fprintf(o.Warnings, "warning: %s\n", w)
		}
	}
	if err != nil {
		return fmt.Errorf("nothing was written: %w", err)
	}
	if len(result.Objects) == 0 {
		return fmt.Errorf("nothing was written: none of the %d objects of the input becomes one of Holdfast's", len(objects))
	}
	text, err := convert.Write(result.Objects)
	if err != nil {
		return err
	}
	if o.Output != "" && o.Output != "-" {
		// Not put in its place in one step: a link, or a device, is written to.
		return os.WriteFile(o.Output, text, 0o644)
	}
	_, err = a.Out.Write(text)
	return err
}

// manifestsOf reads a file, the files of a folder, or the standard input.
func manifestsOf(name string, in io.Reader) ([]convert.Object, error) {
	if name == "-" {
		text, err := io.ReadAll(in)
		if err != nil {
			return nil, fmt.Errorf("read the standard input: %w", err)
		}
		return convert.Read("standard input", text)
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	names := []string{name}
	if info.IsDir() {
		names, err = filepath.Glob(filepath.Join(name, "*"))
		if err != nil {
			return nil, fmt.Errorf("manifests of folder %s: %w", name, err)
		}
		names = slices.DeleteFunc(names, func(n string) bool { return !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(n)) })
		if len(names) == 0 {
			return nil, fmt.Errorf("folder %s has no file that ends in .yaml, .yml or .json", name)
		}
	}
	var all []convert.Object
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
		found, err := convert.Read(name, text)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}
