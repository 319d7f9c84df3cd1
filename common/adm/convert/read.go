package convert

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	documents "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Read returns the objects of a text of YAML documents, or of JSON. Lists, as kubectl
// get gives them, are taken apart. file is its name, for messages.
func Read(file string, text []byte) ([]Object, error) {
	reader := documents.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var all []Object
	for n := 1; ; n++ {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: document %d: %w", file, n, err)
		}
		asJSON, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return nil, fmt.Errorf("%s: document %d: %w", file, n, err)
		}
		if string(asJSON) == "null" {
			continue // comments only
		}
		var fields map[string]any
		if err := unmarshal(asJSON, &fields); err != nil {
			return nil, fmt.Errorf("%s: document %d is no object: %w", file, n, err)
		}
		found, err := objects(file, fields)
		if err != nil {
			return nil, fmt.Errorf("%s: document %d: %w", file, n, err)
		}
		all = append(all, found...)
	}
}

// unmarshal keeps numbers as they are written.
func unmarshal(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(into)
}

func objects(file string, fields map[string]any) ([]Object, error) {
	kind, _ := fields["kind"].(string)
	version, _ := fields["apiVersion"].(string)
	if kind == "" || version == "" {
		return nil, errors.New("it has no kind or no apiVersion; is it a manifest?")
	}
	items, isList := fields["items"].([]any)
	if !strings.HasSuffix(kind, "List") || !isList {
		meta, _ := fields["metadata"].(map[string]any)
		for _, read := range []string{"kind", "apiVersion", "metadata"} {
			delete(fields, read)
		}
		return []Object{{File: file, APIVersion: version, Kind: kind, Metadata: meta, Fields: fields}}, nil
	}
	var all []Object
	for i, item := range items {
		fields, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("item %d of the %s is no object", i, kind)
		}
		found, err := objects(file, fields)
		if err != nil {
			return nil, fmt.Errorf("item %d of the %s: %w", i, kind, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// Write is the text of objects: YAML documents, as kubectl apply takes them.
func Write(objects []any) ([]byte, error) {
	var out bytes.Buffer
	for i, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			return nil, fmt.Errorf("write object %d: %w", i, err)
		}
		if i > 0 {
			out.WriteString("---\n")
		}
		out.Write(text)
	}
	return out.Bytes(), nil
}
