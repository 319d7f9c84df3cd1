package stats

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// text writes figures in Prometheus' text format, version 0.0.4.
type text struct{ bytes.Buffer }

// family writes the series of one name, and nothing when there are none.
func (t *text) family(name, kind, help string, series func(name string)) {
	before := t.Len()
	t.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
	head := t.Len()
	if series(name); t.Len() == head {
		t.Truncate(before)
	}
}

const (
	gauge   = "gauge"
	counter = "counter"
)

// label is the name and the value of a label.
type label struct{ name, value string }

var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// series writes one value; at zero stands for the time of the scrape.
func (t *text) series(name string, labels []label, value float64, at time.Time) {
	t.WriteString(name)
	for i, l := range labels {
		t.WriteByte("{,"[min(i, 1)])
		t.WriteString(l.name)
		t.WriteString(`="`)
		escape.WriteString(t, l.value)
		t.WriteByte('"')
	}
	if len(labels) > 0 {
		t.WriteByte('}')
	}
	t.WriteByte(' ')
	t.Write(strconv.AppendFloat(t.AvailableBuffer(), value, 'g', -1, 64))
	if !at.IsZero() {
		t.WriteByte(' ')
		t.Write(strconv.AppendInt(t.AvailableBuffer(), at.UnixMilli(), 10))
	}
	t.WriteByte('\n')
}

// count is series for a number that may not be known.
func (t *text) count(name string, labels []label, n *uint64, at time.Time) {
	if n != nil {
		t.series(name, labels, float64(*n), at)
	}
}

// seconds is count for nanoseconds.
func (t *text) seconds(name string, labels []label, ns *uint64, at time.Time) {
	if ns != nil {
		t.series(name, labels, float64(*ns)/float64(time.Second), at)
	}
}

// moment is a series for a time that may not be known.
func (t *text) moment(name string, labels []label, at time.Time) {
	if at.Unix() > 0 {
		t.series(name, labels, float64(at.UnixMilli())/1000, time.Time{})
	}
}
