//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// console is a terminal and what was written to it.
type console struct {
	*os.File
	mu   sync.Mutex
	seen bytes.Buffer
}

func newConsole(t *testing.T) *console {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 6, Col: 120}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &console{File: tty}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(memory{c}, readOnly{master}) // ends with an error when the other side is closed
	}()
	t.Cleanup(func() { tty.Close(); master.Close(); <-read })
	return c
}

type readOnly struct{ io.Reader }

// memory is where a console keeps what it has seen.
type memory struct{ c *console }

func (m memory) Write(text []byte) (int, error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	return m.c.seen.Write(text)
}

// text is what is on the terminal, once it holds want.
func (c *console) await(t *testing.T, want string) string {
	t.Helper()
	var text string
	await(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		text = c.seen.String()
		return strings.Contains(text, want)
	})
	return text
}

// TestColours: on a terminal alone, unless NO_COLOR says otherwise, and never
// what another cluster wrote.
func TestColours(t *testing.T) {
	socket := serveAgent(t, &fakeAgent{})
	show := func(args ...string) string {
		c := newConsole(t)
		if code := run(t.Context(), append([]string{"status", "--api-socket", socket}, args...), nil, c.File, io.Discard); code != cli.ExitOK {
			t.Errorf("exit code %d", code)
		}
		fmt.Fprintln(c.File, "the end")
		return c.await(t, "the end")
	}
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	text := show()
	for _, want := range []string{green + "synced" + plain, red + "stale" + plain, bold + "CLUSTER ", yellow + "! evil"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q lacks %q", text, want)
		}
	}
	if strings.Contains(text, "\x1b[2J") {
		t.Errorf("%q passes on what another cluster wrote", text)
	}
	if text := show("-o", "json"); strings.Contains(text, "\x1b") {
		t.Errorf("json: %q", text)
	}
	t.Setenv("NO_COLOR", "1")
	if text := show(); strings.Contains(text, "\x1b") {
		t.Errorf("NO_COLOR: %q", text)
	}
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	if text := show(); strings.Contains(text, "\x1b") {
		t.Errorf("dumb terminal: %q", text)
	}
}

// TestWatchRedraws: on a terminal an answer takes the place of the one before,
// and what has no room is said to be cut off.
func TestWatchRedraws(t *testing.T) {
	socket := serveAgent(t, &fakeAgent{})
	c := newConsole(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"services", "-w", "--interval", "1ms", "--api-socket", socket}, nil, c.File, io.Discard)
	}()
	c.await(t, "\x1b[J\x1b[H")
	cancel()
	if code := <-ended; code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	text := c.await(t, "more lines; enlarge the terminal")
	if frames := strings.Split(text, "\x1b[J"); strings.Count(frames[1], "\n") != 5 {
		t.Errorf("a frame of 5 lines is %q", frames[1])
	}
}

// TestProgress: nothing within a second, then what is waited for, and nothing
// of it is left.
func TestProgress(t *testing.T) {
	c := newConsole(t)
	p := newProgress(c.File, "waiting for Godot")
	close(p.done) // the test is the clock
	p.draw(p.since.Add(500 * time.Millisecond))
	p.draw(p.since.Add(2 * time.Second))
	p.say("waiting for Pozzo")
	p.draw(p.since.Add(3 * time.Second))
	p.end()
	fmt.Fprint(c.File, "the end")
	if text := c.await(t, "the end"); text != "\r\x1b[Kwaiting for Godot (2s)\r\x1b[K\r\x1b[Kwaiting for Pozzo (3s)\r\x1b[Kthe end" {
		t.Errorf("got %q", text)
	}
	if (&app{stderr: io.Discard}).progress("x") != nil {
		t.Error("progress without a terminal")
	}
	(*progress)(nil).say("x")
	(*progress)(nil).end()
}
