package arch

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/common/config"
)

// TestEveryConfigKeyIsDocumented, with its default where that is a text of its own.
func TestEveryConfigKeyIsDocumented(t *testing.T) {
	text := readText(t, "docs/configuration.md")
	for _, c := range []struct {
		heading string
		config  any
	}{{"## edgecore", config.DefaultEdge()}, {"## cloudcore", config.DefaultCloud()}} {
		_, section, found := strings.Cut(text, c.heading)
		if !found {
			t.Fatalf("docs/configuration.md has no section %q", c.heading)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		value := reflect.ValueOf(c.config)
		for i := range value.NumField() {
			key, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
			row := regexp.MustCompile("(?m)^\\| `" + key + "` \\|([^|]*)\\|").FindStringSubmatch(section)
			if row == nil {
				t.Errorf("docs/configuration.md, %s: no row for the key %s", c.heading, key)
				continue
			}
			if s, ok := value.Field(i).Interface().(string); ok && s != "" && !strings.Contains(row[1], "`"+s+"`") {
				t.Errorf("docs/configuration.md, %s: the default of %s is %s, not%s", c.heading, key, s, row[1])
			}
		}
		for _, row := range regexp.MustCompile("(?m)^\\| `([a-zA-Z]+)` \\|").FindAllStringSubmatch(section, -1) {
			known := false
			for i := range value.NumField() {
				key, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
				known = known || key == row[1]
			}
			if !known {
				t.Errorf("docs/configuration.md, %s: there is no key %s", c.heading, row[1])
			}
		}
	}
}

// TestLinksBetweenDocumentsLead somewhere.
func TestLinksBetweenDocumentsLead(t *testing.T) {
	files := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "keps/*.md"} {
		found, err := filepath.Glob(filepath.Join(root(t), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			name, err := filepath.Rel(root(t), f)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, name)
		}
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, file := range files {
		for _, match := range link.FindAllStringSubmatch(readText(t, file), -1) {
			target := filepath.Join(root(t), filepath.Dir(file), match[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", file, match[1])
			}
		}
	}
}

// TestREADMEShowsTheVerbs: what the README tells people to type exists.
func TestREADMEShowsTheVerbs(t *testing.T) {
	makefile := readText(t, "Makefile")
	for _, file := range []string{"README.md", "docs/quickstart.md"} {
		for _, match := range regexp.MustCompile("(?m)(?:^    |`)make ([a-z ]+?)(?: *#|`|$)").FindAllStringSubmatch(readText(t, file), -1) {
			for _, verb := range strings.Fields(match[1]) {
				if !strings.Contains(makefile, "\n"+verb+":") {
					t.Errorf("%s says `make %s`, and the Makefile has no such verb", file, verb)
				}
			}
		}
	}
}

func readText(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
