package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// Spec says what to start and where. Without a Node the process runs in the
// lab's own network namespace, without a Cgroup in the cgroup of its name.
type Spec struct {
	Name   string // of the log file and default cgroup
	Path   string
	Args   []string
	Env    []string // added to the lab's own environment
	Node   *Node
	Cgroup string
	Stdin  io.Reader
	Stdout io.Writer // instead of the log
}

// Process is one started process. Its methods are safe for concurrent use.
type Process struct {
	Name string
	Log  string // path of the log file
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a process; it dies with the lab at the latest.
func (l *Lab) Start(s Spec) (*Process, error) {
	p, err := l.start(s)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	return p, nil
}

func (l *Lab) start(s Spec) (*Process, error) {
	if s.Cgroup == "" {
		var err error
		if s.Cgroup, err = l.Cgroup("process/" + s.Name); err != nil {
			return nil, err
		}
	}
	group, err := os.Open(s.Cgroup)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	path := filepath.Join(l.Dir, "log", s.Name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := command(s, log, group)
	if err := l.launch.start(cmd, s.Node); err != nil {
		return nil, err
	}
	p := &Process{Name: s.Name, Log: path, cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }() // the state is read from cmd
	return p, nil
}

func command(s Spec, log, group *os.File) *exec.Cmd {
	cmd := exec.Command(s.Path, s.Args...)
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, log, log
	if s.Stdout != nil {
		cmd.Stdout = s.Stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
		Pdeathsig:   syscall.SIGKILL,
	}
	return cmd
}

// PID is the process id in the lab's PID namespace.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Alive tells whether the process still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // ended already: as wanted
	<-p.done
}

// Terminate sends SIGTERM and returns the exit code and the time it took. It
// fails, and kills, when the process has not ended within the limit.
func (p *Process) Terminate(limit time.Duration) (int, time.Duration, error) {
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, 0, err
	}
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), time.Since(begin), nil
	case <-time.After(limit):
		p.Kill()
		return -1, time.Since(begin), fmt.Errorf("%s still ran %v after SIGTERM", p.Name, limit)
	}
}

// Exit waits for the process to end and returns its exit code.
func (p *Process) Exit(limit time.Duration) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(limit):
		return -1, fmt.Errorf("%s still runs after %v", p.Name, limit)
	}
}

// launcher starts all processes from one thread that lives as long as the lab:
// the parent-death signal of a child fires when the thread that made it ends,
// and a child's network namespace is its parent thread's.
type launcher struct {
	work chan func()
	once sync.Once
}

func newLauncher() *launcher {
	l := &launcher{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for job := range l.work {
			job()
		}
	}()
	return l
}

func (l *launcher) close() { l.once.Do(func() { close(l.work) }) }

func (l *launcher) start(cmd *exec.Cmd, n *Node) error {
	result := make(chan error, 1)
	l.work <- func() { result <- startIn(cmd, n) }
	return <-result
}

func startIn(cmd *exec.Cmd, n *Node) error {
	if n == nil {
		return cmd.Start()
	}
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(n.ns); err != nil {
		return fmt.Errorf("enter network namespace of %s: %w", n.Name, err)
	}
	return errors.Join(cmd.Start(), netns.Set(home))
}
