package arch

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// dashboard is what is looked at of a Grafana dashboard.
type dashboard struct {
	UID    string  `json:"uid"`
	Panels []panel `json:"panels"`
	Vars   struct {
		List []struct {
			Name       string `json:"name"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
}

type panel struct {
	ID      int    `json:"id"`
	Type    string `json:"type"`
	Title   string `json:"title"`
	GridPos struct{ H, W, X, Y int }
	Targets []struct {
		Expr  string `json:"expr"`
		RefID string `json:"refId"`
	} `json:"targets"`
}

// TestTheDashboardShowsMetricsThatThereAre: each name in its expressions, and each
// label by which they choose or sum, is in docs/metrics.md.
func TestTheDashboardShowsMetricsThatThereAre(t *testing.T) {
	var d dashboard
	decoder := json.NewDecoder(strings.NewReader(readText(t, "build/grafana/holdfast.json")))
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{} // of each metric
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|([^|]*)\\|").FindAllStringSubmatch(readText(t, "docs/metrics.md"), -1) {
		labels[row[1]] = "instance," + strings.ReplaceAll(row[2], " ", "")
	}
	expressions := map[string]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q: its id %d is another's, or it stands outside", p.Title, p.ID)
		}
		ids[p.ID] = true
		if (len(p.Targets) == 0) != (p.Type == "row") {
			t.Errorf("panel %q has %d expressions", p.Title, len(p.Targets))
		}
		for _, target := range p.Targets {
			expressions[p.Title+" "+target.RefID] = target.Expr
		}
	}
	for _, v := range d.Vars.List {
		if v.Definition != "" {
			expressions["variable "+v.Name] = v.Definition
		}
	}
	if len(expressions) < 20 || d.UID == "" {
		t.Fatalf("the dashboard has %d expressions and the uid %q", len(expressions), d.UID)
	}
	name := regexp.MustCompile(`\b(?:holdfast|process|go)_[a-z0-9_]+`)
	chosen := regexp.MustCompile(`([a-z_]+)(?:=~|!=|!~|=)"`)
	summed := regexp.MustCompile(`by \(([a-z_, ]+)\)`)
	for where, expr := range expressions {
		metrics := name.FindAllString(expr, -1)
		if len(metrics) == 0 {
			t.Errorf("%s: no metric in %s", where, expr)
		}
		for _, m := range metrics {
			has, ok := labels[m]
			if !ok {
				t.Errorf("%s: docs/metrics.md does not know %s", where, m)
				continue
			}
			used := ""
			for _, match := range summed.FindAllStringSubmatch(expr, -1) {
				used += "," + strings.ReplaceAll(match[1], " ", "")
			}
			for _, match := range chosen.FindAllStringSubmatch(expr, -1) {
				used += "," + match[1]
			}
			for _, label := range strings.Split(used, ",") {
				if label != "" && !strings.Contains(","+has+",", ","+label+",") {
					t.Errorf("%s: %s has no label %s in docs/metrics.md (%s)", where, m, label, has)
				}
			}
			if counter := strings.HasSuffix(m, "_total"); counter != (strings.Contains(expr, "rate(") || strings.Contains(expr, "increase(")) {
				t.Errorf("%s: %s: counters are shown by their rate, and gauges are not", where, expr)
			}
		}
	}
}

// TestMetricsAreNamedByPrometheusConventions: a unit is the last word before _total, and
// no name says of what type it is.
func TestMetricsAreNamedByPrometheusConventions(t *testing.T) {
	for _, row := range regexp.MustCompile("(?m)^\\| `(holdfast_[a-z0-9_]+)` \\|([^|]*)\\|").FindAllStringSubmatch(readText(t, "docs/metrics.md"), -1) {
		m := row[1]
		words := strings.Split(strings.TrimSuffix(m, "_total"), "_")
		for i, w := range words {
			switch w {
			case "bytes", "seconds", "ratio", "celsius":
				if i != len(words)-1 {
					t.Errorf("%s: the unit %s is not its last word", m, w)
				}
			case "gauge", "counter", "summary", "histogram", "total", "kb", "mb", "usec", "nanoseconds", "percent":
				t.Errorf("%s: %s does not belong into a name", m, w)
			}
		}
		for _, suffix := range []string{"_count", "_sum", "_bucket"} {
			if strings.HasSuffix(m, suffix) {
				t.Errorf("%s ends like a part of a histogram", m)
			}
		}
		for _, label := range strings.Split(strings.ReplaceAll(row[2], " ", ""), ",") {
			if label != "" && (!regexp.MustCompile(`^[a-z][a-z_]*$`).MatchString(label) || strings.Contains(m, "_by_")) {
				t.Errorf("%s: the label %s", m, label)
			}
		}
	}
}
