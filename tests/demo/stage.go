package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// stage prints the story: numbered scenes, what is typed, what comes back, and a
// line of progress while something takes its time.
type stage struct {
	out   io.Writer
	began time.Time
	scene int

	mu    sync.Mutex
	times []lap
}

// lap is one line of the table at the end.
type lap struct {
	what string
	took time.Duration
}

func newStage(out io.Writer) *stage { return &stage{out: out, began: time.Now()} }

func (s *stage) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format, args...)
}

// act opens a scene.
func (s *stage) act(title string) {
	s.scene++
	s.printf("\n[%3.0f s] %d. %s\n", time.Since(s.began).Seconds(), s.scene, title)
}

func (s *stage) note(text string) { s.printf("        %s\n", text) }

// show prints a command as typed and what it answered.
func (s *stage) show(command, output string) {
	s.printf("        $ %s\n", command)
	for line := range strings.Lines(strings.TrimRight(output, "\n") + "\n") {
		s.printf("          %s", line)
	}
}

// timed runs fn, prints a mark every five seconds while it lasts, and keeps its
// duration for the table.
func (s *stage) timed(what string, fn func() error) error {
	start := time.Now()
	stop := make(chan struct{})
	var marks sync.WaitGroup
	marks.Go(func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.printf("        ... %2.0f s: %s\n", time.Since(start).Seconds(), what)
			}
		}
	})
	err := fn()
	close(stop)
	marks.Wait()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	took := time.Since(start)
	s.times = append(s.times, lap{what, took})
	s.printf("        done in %.1f s: %s\n", took.Seconds(), what)
	return nil
}

// table prints the durations.
func (s *stage) table() {
	s.printf("\n        %-62s %8s\n", "WHAT", "SECONDS")
	for _, l := range s.times {
		s.printf("        %-62s %8.1f\n", l.what, l.took.Seconds())
	}
}
