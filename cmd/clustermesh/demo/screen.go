package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// screen tells the story. Writing to it does not fail the demo.
type screen struct {
	w    io.Writer
	step int
}

func (s *screen) heading(text string) {
	s.step++
	fmt.Fprintf(s.w, "\n%d. %s\n", s.step, text)
}

func (s *screen) say(format string, args ...any) {
	fmt.Fprintf(s.w, "   "+format+"\n", args...)
}

// typed shows a command as a user would type it, in a cluster's pod or node.
func (s *screen) typed(where string, args ...string) {
	fmt.Fprintf(s.w, "   %s$ %s\n", where, strings.Join(args, " "))
}

// answer shows what a command printed.
func (s *screen) answer(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		fmt.Fprint(s.w, "     ", line)
	}
}

// bodies shows the answers of one series, equal ones joined.
func (s *screen) bodies(replies []reply) {
	counts := map[string]int{}
	for _, r := range replies {
		counts[strings.TrimSpace(r.Body+r.Err)]++
	}
	var lines []string
	for text, n := range counts {
		lines = append(lines, fmt.Sprintf("%3d x %s", n, text))
	}
	slices.Sort(lines)
	s.answer(strings.Join(lines, "\n"))
}
