package arch

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestEveryMetricIsDocumented, and no other: names in the sources against the
// tables of docs/metrics.md.
func TestEveryMetricIsDocumented(t *testing.T) {
	exported := map[string]string{}
	quote, end := "[\"`]", `(?:\{|"| %)`
	own := regexp.MustCompile(quote + `(holdfast_(?:hub|edge|build)_[a-z0-9_]+)` + end)
	all := regexp.MustCompile(quote + `((?:holdfast_build|process|go)_[a-z0-9_]+)` + end) // of any daemon, some named as other programs have them
	sources(t, func(path, file string) {
		name := own
		if strings.HasPrefix(file, "common/metrics/") {
			name = all
		}
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range name.FindAllStringSubmatch(string(b), -1) {
			exported[match[1]] = file
		}
	})
	if len(exported) < 30 {
		t.Fatalf("found %d metrics in the sources, which cannot be all", len(exported))
	}
	documented := map[string]bool{}
	for _, match := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|").FindAllStringSubmatch(readText(t, "docs/metrics.md"), -1) {
		if documented[match[1]] {
			t.Errorf("docs/metrics.md tells of %s twice", match[1])
		}
		documented[match[1]] = true
		if exported[match[1]] == "" {
			t.Errorf("docs/metrics.md tells of %s, which nothing exports", match[1])
		}
	}
	for m, file := range exported {
		if !documented[m] {
			t.Errorf("docs/metrics.md does not tell of %s (%s)", m, file)
		}
		unit := regexp.MustCompile(`_(milliseconds|ms|kib|mb|minutes|hours)(_|$)`)
		if strings.HasPrefix(m, "holdfast_") && unit.MatchString(m) {
			t.Errorf("%s: %s is not in seconds or bytes", file, m)
		}
	}
}
