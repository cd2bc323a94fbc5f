package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// watch is how a question is asked again and again.
type watch struct {
	on    bool
	every time.Duration
}

// watchFlags adds --watch to a command whose question askAgent asks.
func watchFlags(c *cobra.Command) *cobra.Command {
	c.Flags().BoolP("watch", "w", false, "ask again and again until interrupted: redrawn on a terminal, else one answer after the other; json is then a line each")
	c.Flags().Duration("interval", time.Second, "time between two questions of --watch")
	return c
}

// watchOf reads those flags; a command without them is not watched.
func watchOf(flags *pflag.FlagSet) (watch, error) {
	if flags.Lookup("watch") == nil {
		return watch{}, nil
	}
	on, _ := flags.GetBool("watch")
	every, _ := flags.GetDuration("interval")
	return watch{on: on, every: every}, usage(positive("interval", every))
}

// again asks until ctx ends. An agent that does not answer the first time is an
// error; later it may be on its way back, so that is told and asked again.
func (a *app) again(ctx context.Context, w watch, ask func(context.Context) error) error {
	a.stream = true
	out := a.stdout
	screen := a.screen(out)
	ticker := time.NewTicker(w.every)
	defer ticker.Stop()
	told := ""
	for first := true; ; first = false {
		var text bytes.Buffer
		a.stdout = &text
		err := ask(ctx)
		a.stdout = out
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil && screen != nil:
			fmt.Fprintf(&text, "! %s\n", printable(err.Error()))
		case err != nil && err.Error() != told:
			fmt.Fprintf(a.stderr, "error: %s\n", indent(err))
		}
		told = ""
		if err != nil {
			told = err.Error()
		}
		if err := a.frame(screen, text.String()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// screen is a terminal that is redrawn. Documents for machines are not.
type screen struct {
	w    io.Writer
	size func() (width, height int)
}

func (a *app) screen(out io.Writer) *screen {
	file := terminal(out)
	if file == nil || a.forMachines() {
		return nil
	}
	fmt.Fprint(file, "\x1b[2J")
	return &screen{w: file, size: func() (int, int) {
		width, height, err := term.GetSize(int(file.Fd()))
		if err != nil {
			return 0, 0
		}
		return width, height
	}}
}

// frame shows one answer.
func (a *app) frame(s *screen, text string) error {
	at := time.Now().UTC().Format("2006-01-02 15:04:05Z")
	switch {
	case s != nil:
		return s.redraw(at + "\n\n" + text)
	case a.forMachines() || text == "":
		_, err := io.WriteString(a.stdout, text)
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "%s\n%s\n", at, text)
	return err
}

// redraw writes over what is there, without a blank moment in between. What has
// no room is cut off, and said to be.
func (s *screen) redraw(text string) error {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if _, height := s.size(); height > 1 && len(lines) >= height {
		more := len(lines) - height + 2
		lines = append(lines[:height-2], fmt.Sprintf("... %s; enlarge the terminal, or use -o json", cli.Count(more, "more line", "")))
	}
	var out bytes.Buffer
	out.WriteString("\x1b[H")
	for _, line := range lines {
		out.WriteString(line + "\x1b[K\n")
	}
	out.WriteString("\x1b[J")
	_, err := s.w.Write(out.Bytes())
	return err
}
