package metrics

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// Parse reads metrics as Prometheus would: name and labels, as they are written,
// to the value. It fails where Prometheus would refuse, and where the lines of one
// metric do not stand together. Tests and people's tools use it.
func Parse(r io.Reader) (map[string]float64, error) {
	series := regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\\n]|\\.)*",?)*\})? (\S+)$`)
	out := map[string]float64{}
	typed, over := map[string]bool{}, map[string]bool{}
	last := ""
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			if typed[name] {
				return nil, fmt.Errorf("the type is told twice: %s", line)
			}
			typed[name] = true
			continue
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		match := series.FindStringSubmatch(line)
		if match == nil {
			return nil, fmt.Errorf("not a metric: %q", line)
		}
		value, err := strconv.ParseFloat(match[5], 64)
		if err != nil {
			return nil, fmt.Errorf("not a number: %q", line)
		}
		if family := match[1]; family != last {
			if over[family] {
				return nil, fmt.Errorf("lines of another metric between those of %s", family)
			}
			over[last], last = true, family
		}
		name := strings.TrimSuffix(line, " "+match[5])
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("twice: %s", name)
		}
		out[name] = value
	}
	return out, nil
}
