package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/term"
)

// terminal returns the file behind a stream if that is a terminal, else nil.
func terminal(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// wantsColour follows https://no-color.org and terminals that have none.
func wantsColour(stdout any) bool {
	return terminal(stdout) != nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// painter passes text for people on, line by line: without the control
// characters that may be in what other clusters say, and in colours if they are
// wanted. Close passes on what has no end of line.
type painter struct {
	w      io.Writer
	colour bool
	line   []byte
	err    error
}

func (a *app) painter() *painter { return &painter{w: a.stdout, colour: a.colour} }

// Write keeps an incomplete line for later.
func (p *painter) Write(text []byte) (int, error) {
	p.line = append(p.line, text...)
	for {
		line, rest, complete := bytes.Cut(p.line, []byte{'\n'})
		if !complete || p.err != nil {
			return len(text), p.err
		}
		_, p.err = io.WriteString(p.w, p.paint(printable(string(line)))+"\n")
		p.line = rest
	}
}

// Close returns the first error of the writer behind.
func (p *painter) Close() error {
	if len(p.line) > 0 && p.err == nil {
		_, p.err = io.WriteString(p.w, p.paint(printable(string(p.line))))
	}
	return p.err
}

// printable replaces what a terminal could take for a command.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// Attributes of ECMA-48, which every terminal has.
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

var (
	headingPattern = regexp.MustCompile(`^ *[A-Z][A-Z %/]*(  +[A-Z][A-Z %/]*)+$`)
	cellPattern    = regexp.MustCompile(`\S+( \S+)*`)
)

// paint colours a line after its columns were aligned: headings, what an
// operator should look at, and cells that are the name of a state.
func (p *painter) paint(line string) string {
	switch {
	case !p.colour:
		return line
	case strings.HasPrefix(strings.TrimLeft(line, " "), "! "):
		return yellow + line + plain
	case headingPattern.MatchString(line):
		return bold + line + plain
	case strings.HasSuffix(line, ": not ready"):
		return red + line + plain
	}
	return cellPattern.ReplaceAllStringFunc(line, func(cell string) string {
		if c := colourOf(cell); c != "" {
			return c + cell + plain
		}
		return cell
	})
}

// colourOf is the colour of the name of a state, else "".
func colourOf(cell string) string {
	switch cell {
	case "synced", "ready", "ok", "pass", "valid", "open", "active":
		return green
	case "fail", "stale", "dead", "failing", "refused", "broken", "expired", "missing", "not ready", "not-ready":
		return red
	case "connecting", "syncing", "terminating", "quarantined", "held", "note", "breaks", "not yet valid":
		return yellow
	}
	return ""
}

// progress tells on a terminal what a command has been waiting for once that
// takes longer than a second. A nil one does nothing.
type progress struct {
	w     io.Writer
	mu    sync.Mutex
	text  string
	since time.Time
	shown bool
	stop  chan struct{}
	done  chan struct{}
}

// progress begins one on standard error, if that is a terminal. end must be
// called.
func (a *app) progress(text string) *progress {
	if terminal(a.stderr) == nil {
		return nil
	}
	p := newProgress(a.stderr, text)
	go p.run()
	return p
}

func newProgress(w io.Writer, text string) *progress {
	return &progress{w: w, text: text, since: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
}

func (p *progress) run() {
	defer close(p.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			p.draw(now)
		}
	}
}

func (p *progress) draw(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if waited := now.Sub(p.since); waited >= time.Second {
		fmt.Fprintf(p.w, "\r\x1b[K%s (%s)", printable(p.text), waited.Truncate(time.Second))
		p.shown = true
	}
}

// say changes what is waited for, and makes room for other output.
func (p *progress) say(text string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text, p.since = text, time.Now()
	p.wipe()
}

func (p *progress) wipe() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// end wipes what is shown; nothing is shown after it.
func (p *progress) end() {
	if p == nil {
		return
	}
	close(p.stop)
	<-p.done
	p.wipe()
}
