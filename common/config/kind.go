package config

import (
	"fmt"
	"os"

	"sigs.k8s.io/yaml"
)

// IsCloud says whose config file it is: cloudcore's, or that of an edgecore, which
// names its hub. It does not check the rest.
func IsCloud(path string) (bool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("config file: %w", err)
	}
	var keys map[string]any
	if err := yaml.Unmarshal(text, &keys); err != nil {
		return false, fmt.Errorf("config file %s: %w", path, err)
	}
	_, edge := keys["hub"]
	return !edge, nil
}
