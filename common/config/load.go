package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// LoadEdge reads, completes and checks the config file of edgecore. Every error
// names the file.
func LoadEdge(path string) (Edge, error) {
	c := DefaultEdge()
	if err := load(path, &c); err != nil {
		return Edge{}, err
	}
	if err := c.complete(); err != nil {
		return Edge{}, fmt.Errorf("config file %s: %w", path, err)
	}
	if err := c.Validate(); err != nil {
		return Edge{}, fmt.Errorf("config file %s: %w", path, err)
	}
	return c, nil
}

// LoadCloud reads, completes and checks the config file of cloudcore.
func LoadCloud(path string) (Cloud, error) {
	c := DefaultCloud()
	if err := load(path, &c); err != nil {
		return Cloud{}, err
	}
	if err := c.Validate(); err != nil {
		return Cloud{}, fmt.Errorf("config file %s: %w", path, err)
	}
	return c, nil
}

// Encode writes a config (an Edge or a Cloud) as the file that Load reads.
func Encode[C Edge | Cloud](c C) ([]byte, error) {
	b, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	return b, nil
}

func load(path string, into any) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("config file %s does not exist: \"holdfast join\" and \"holdfast init\" write it, or name another with --config", path)
	}
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	if err := decode(text, into); err != nil {
		return fmt.Errorf("config file %s: %w", path, err)
	}
	return nil
}

// decode fills into from YAML, and refuses keys that it does not have: a
// misspelt key would else be a setting that silently does nothing.
func decode(text []byte, into any) error {
	var keys map[string]any
	if err := yaml.Unmarshal(text, &keys); err != nil {
		if len(bytes.TrimSpace(text)) > 0 {
			return fmt.Errorf("not YAML of the form \"key: value\": %w", err)
		}
	}
	if err := checkKeys(keys, reflect.TypeOf(into).Elem(), ""); err != nil {
		return err
	}
	// Strict also refuses a key that is written twice.
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

func mapKeys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// checkKeys refuses keys that a struct does not have, and those of the structs in it.
func checkKeys(keys map[string]any, t reflect.Type, within string) error {
	fields := make(map[string]reflect.Type, t.NumField())
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		fields[key] = t.Field(i).Type
	}
	known := slices.Sorted(mapKeys(fields))
	for _, key := range slices.Sorted(mapKeys(keys)) {
		field, ok := fields[key]
		if !ok {
			if near := nearest(key, known); near != "" {
				return fmt.Errorf("unknown key %q: did you mean %q?", within+key, within+near)
			}
			return fmt.Errorf("unknown key %q: known are %s", within+key, strings.Join(known, ", "))
		}
		if inner, ok := keys[key].(map[string]any); ok && field.Kind() == reflect.Struct {
			if err := checkKeys(inner, field, within+key+"."); err != nil {
				return err
			}
		}
	}
	return nil
}

// nearest is the known key that key is probably meant to be, or "".
func nearest(key string, known []string) string {
	best, bestDistance := "", len(key)/3+2
	for _, k := range known {
		if d := distance(strings.ToLower(key), strings.ToLower(k)); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance counts the letters to add, drop or change from a to b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
