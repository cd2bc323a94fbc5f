package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a running program of a node. Its output goes to a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed after it ended and was reaped
}

// command prepares a program that will run in a place and a cgroup, with
// nothing of the user's environment but the search path, and that dies with the
// thread of the place.
func command(ctx context.Context, in *cgroup, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:   syscall.SIGKILL,
		UseCgroupFD: true, // born in it: a socket belongs to the cgroup its maker is in
		CgroupFD:    int(in.dir.Fd()),
		Setpgid:     true, // Ctrl-C is for the demo, which then ends them
	}
	return cmd
}

// spawn starts a program whose output goes to a file in logs.
func spawn(p *place, in *cgroup, logs, name string, args ...string) (*process, error) {
	path := filepath.Join(logs, p.name+"-"+name+".log")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := command(context.Background(), in, args)
	cmd.Stdout, cmd.Stderr = out, out
	if err := p.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s of %s: %w", name, p.name, err)
	}
	proc := &process{name: name + " of " + p.name, cmd: cmd, log: path, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(proc.done) }()
	return proc, nil
}

// kill ends the process at once, as a crash would, and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// ended returns an error when the process is not running any more.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s\n%s", p.name, p.cmd.ProcessState, p.tail())
	default:
		return nil
	}
}

// tailLines is how much of a log is shown when something failed.
const tailLines = 8

func (p *process) tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return "  | " + strings.Join(lines, "\n  | ")
}

// output runs a program to its end and returns what it wrote.
func output(ctx context.Context, p *place, in *cgroup, args ...string) ([]byte, error) {
	cmd := command(ctx, in, args)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := p.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(args[1:], " "), err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("run %s: %w: %s", strings.Join(args[1:], " "), err, strings.TrimSpace(errOut.String()))
	}
	return io.ReadAll(&out)
}

// pollInterval is how often a condition is looked at.
const pollInterval = 10 * time.Millisecond

// await returns when cond returns nil. It gives up when ctx ends, when the
// time is over, or when one of the processes it depends on has ended.
func await(ctx context.Context, limit time.Duration, what string, procs []*process, cond func(context.Context) error) error {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		for _, p := range procs {
			if gone := p.ended(); gone != nil {
				return fmt.Errorf("wait until %s: %w", what, gone)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if outer.Err() != nil {
				return outer.Err()
			}
			return fmt.Errorf("wait until %s: not within %s: %w%s", what, limit, err, tails(procs))
		}
	}
}

func tails(procs []*process) string {
	var b strings.Builder
	for _, p := range procs {
		fmt.Fprintf(&b, "\nlast lines of %s:\n%s", p.name, p.tail())
	}
	return b.String()
}
