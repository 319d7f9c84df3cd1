// Package show writes the documents of common/localstatus and common/fleet as people
// read them: tables with columns that stay, and ages instead of dates. common/adm
// calls it. It asks nobody and reads no clock: every age counts from the time that the
// document itself gives, for the reader's clock may be another.
package show

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/duration"
)

// table has rows of cells; a first error of the writer is kept for flush.
type table struct {
	w *tabwriter.Writer
}

func newTable(out io.Writer, columns ...string) table {
	t := table{tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)}
	if len(columns) > 0 {
		t.row(columns...)
	}
	return t
}

// row writes one line. What came from elsewhere (a reason, the name of an image) may
// hold anything: it neither breaks the table nor reaches the terminal as a command.
func (t table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = clean(c)
	}
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t")) // flush has the error
}

func (t table) flush() error { return t.w.Flush() }

// maxCell bounds a cell, in runes.
const maxCell = 240

func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > maxCell {
		s = string(runes[:maxCell-3]) + "..."
	}
	return s
}

// none stands where there is nothing to say.
const none = "-"

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// age is how long something has been so: 12m, 3h, 5d. A time before 2000 is that of a
// clock which was not set.
func age(t, now time.Time) string {
	if t.Year() < 2000 {
		return "?"
	}
	return span(now.Sub(t))
}

func span(d time.Duration) string { return duration.HumanDuration(max(0, d)) }

func ageOf(t *time.Time, now time.Time) string {
	if t == nil {
		return none
	}
	return age(*t, now)
}

func ago(t *time.Time, now time.Time) string {
	switch {
	case t == nil:
		return "never"
	case now.Sub(*t) < time.Second:
		return "now"
	}
	return age(*t, now) + " ago"
}

// size is a number of bytes: 812 B, 1.2 MiB.
func size[N int64 | uint64](n N) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/(1<<10), 0
	for v >= 1000 && unit < 4 {
		v, unit = v/(1<<10), unit+1
	}
	if v >= 100 {
		return fmt.Sprintf("%.0f %ciB", v, "KMGTP"[unit])
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// millis is a round trip.
func millis(ms float64) string {
	switch {
	case ms <= 0:
		return none
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// many is a number with its noun: 1 pod, 2 pods.
func many[N int | int64 | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// words is configMaps as people say it: config maps.
func words(camel string) string {
	var out strings.Builder
	for _, r := range camel {
		if unicode.IsUpper(r) {
			out.WriteByte(' ')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}
