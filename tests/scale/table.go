package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// line is one figure with the aim beside it.
type line struct{ figure, measured, aim string }

// table collects figures, and says each as it comes.
type table struct {
	out   io.Writer
	began time.Time
	lines []line
}

// say tells how far the run is.
func (t *table) say(format string, args ...any) {
	fmt.Fprintf(t.out, "%4.0f s  %s\n", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}

// add adds a figure; aim may be empty.
func (t *table) add(figure, measured, aim string) {
	t.lines = append(t.lines, line{figure, measured, aim})
	beside := ""
	if aim != "" {
		beside = "  (aim: " + aim + ")"
	}
	t.say("       %s: %s%s", figure, measured, beside)
}

// print writes the table in Markdown.
func (t *table) print(heading string) {
	widths := [2]int{len("Figure"), len("Measured")}
	for _, l := range t.lines {
		widths[0], widths[1] = max(widths[0], len(l.figure)), max(widths[1], len(l.measured))
	}
	fmt.Fprintf(t.out, "\n%s\n\n| %-*s | %-*s | Aim |\n|%s|%s|-----|\n", heading, widths[0], "Figure", widths[1], "Measured",
		strings.Repeat("-", widths[0]+2), strings.Repeat("-", widths[1]+2))
	for _, l := range t.lines {
		fmt.Fprintf(t.out, "| %-*s | %-*s | %s |\n", widths[0], l.figure, widths[1], l.measured, l.aim)
	}
}

func kib(bytes float64) string { return fmt.Sprintf("%.1f KiB", bytes/1024) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

// count writes a number with its thousands apart.
func count(n int) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
