package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestKEPsAreWellFormed: numbered without a gap a reader would wonder about,
// each with a title, a status and the template's sections.
func TestKEPsAreWellFormed(t *testing.T) {
	dir := filepath.Join(root(t), "keps")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`^(\d{4})-[a-z0-9]+(-[a-z0-9]+)*\.md$`)
	status := regexp.MustCompile(`(?m)^Status: (proposed|accepted|template|replaced by KEP-\d{4})$`)
	numbers := map[string]string{}
	for _, e := range entries {
		match := name.FindStringSubmatch(e.Name())
		if match == nil {
			t.Errorf("keps/%s: want NNNN-words-with-dashes.md", e.Name())
			continue
		}
		if other := numbers[match[1]]; other != "" {
			t.Errorf("keps/%s and keps/%s have the same number", other, e.Name())
		}
		numbers[match[1]] = e.Name()
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if !strings.HasPrefix(text, "# KEP-"+match[1]+": ") {
			t.Errorf("keps/%s does not begin with \"# KEP-%s: \"", e.Name(), match[1])
		}
		if !status.MatchString(text) {
			t.Errorf("keps/%s has no line \"Status: ...\" of the template's", e.Name())
		}
		for _, section := range []string{"## Problem", "## Decision", "## Why not otherwise", "## What follows"} {
			if !strings.Contains(text, "\n"+section+"\n") {
				t.Errorf("keps/%s has no section %q", e.Name(), section)
			}
		}
	}
	if numbers["0000"] != "0000-template.md" || len(numbers) < 2 {
		t.Errorf("keps has %v: want 0000-template.md and the decisions", numbers)
	}
}
