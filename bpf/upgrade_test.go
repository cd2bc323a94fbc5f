package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// campaign returns how much of something a test does: a bounded amount, or all
// of it where the environment asks for the long version.
func campaign(short, long int) int {
	if os.Getenv("CLUSTERMESH_CAMPAIGN") != "" {
		return long
	}
	return short
}

// upgradeService is a frontend of the tests in this file.
type upgradeService struct {
	ID       uint32
	Addr     string
	Proto    uint8
	Backends []layout.Backend
}

// Each service has so many places in the slab for sets of at most six records.
const (
	upgradePlaces = 32
	upgradeFirst  = 16
)

func (s upgradeService) place(i int) uint32 {
	return upgradeFirst + 8*(upgradePlaces*s.ID+uint32(i%upgradePlaces))
}

// publish makes some of the backends the service's set, in a place of its own.
func (s upgradeService) publish(d *Datapath, i int) {
	from := i % (len(s.Backends) - 1)
	set := append([]layout.Backend(nil), s.Backends[from:from+1+i%2]...)
	for k := range set {
		set[k].Frontend = s.ID
	}
	at := s.place(i)
	d.StoreBackends(at, layout.Region{Total: uint32(len(set)), Frontend: s.ID}, set)
	d.StoreHeader(s.ID, layout.MakeHeader(at, uint16(len(set)), uint16(i)))
}

// upgradeJob is what a successor process is told.
type upgradeJob struct {
	Version, PinDir, Cgroup string
	Services                []upgradeService
}

// runSuccessor is an agent's process: it takes over, says so, and gives the
// services new sets until its input ends or it is killed.
func runSuccessor(text string, in io.Reader) error {
	var job upgradeJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return err
	}
	d, err := takeOver(job.Version, Options{PinDir: job.PinDir, Cgroup: job.Cgroup})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	fmt.Println("loaded")
	for i := job.Services[0].next(d); ; i++ {
		for _, s := range job.Services {
			s.publish(d, i)
		}
		if i%(upgradePlaces/2) == 0 { // long before the places come round
			err = d.WaitRCU()
		}
		select {
		case <-ended:
			return errors.Join(err, d.Close())
		default:
		}
		if err != nil {
			return err
		}
	}
}

// next is the place after the one that is in force. A killed writer may have
// published the first service's set and not the others'.
func (s upgradeService) next(d *Datapath) int {
	offset := layout.Header(d.headers.all[s.ID]).Offset()
	return int(offset-s.place(0))/8 + 1
}

// upgradeTest is traffic to services while agents come and go.
type upgradeTest struct {
	*fixture
	job    upgradeJob
	random *rand.Rand

	mu          sync.Mutex
	connections int
	wrong       map[string]int
}

// newUpgrade makes the pins as an agent of the former version does.
func newUpgrade(t *testing.T) *upgradeTest {
	f := newPlace(t)
	u := &upgradeTest{fixture: f, wrong: map[string]int{}, random: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))}
	u.job = upgradeJob{PinDir: f.opts.PinDir, Cgroup: f.opts.Cgroup, Services: append([]upgradeService{
		{1, "10.96.0.1:80", tcp, f.backends(4, "b", tcp)},
		{2, "10.96.0.1:53", udp, f.backends(4, "b", udp)},
	}, u.echoServices(3)...)}
	d, err := loadFormer(f.opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range u.job.Services {
		s.publish(d, 0)
		if err := d.InsertFrontend(key(s.Addr, s.Proto), s.ID); err != nil {
			t.Error(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	return u
}

// traffic makes requests in tight loops and uses established connections until
// stop is called, which reports them.
func (u *upgradeTest) traffic() (stop func()) {
	u.Helper()
	ended := make(chan struct{})
	var loops sync.WaitGroup
	for _, q := range []request{
		{Socket: "4 tcp", Steps: []string{"connect 10.96.0.1:80", "recv"}, N: 200},
		{Socket: "6 udp", Steps: []string{"sendto 10.96.0.1:53", "recv"}, N: 200},
	} {
		c := u.startClient(u.opts.Cgroup)
		loops.Go(func() { u.loop(c, q, ended) })
	}
	stopHolder := u.hold()
	return func() {
		close(ended)
		loops.Wait()
		stopHolder()
		for outcome, n := range u.wrong {
			u.Errorf("%d times %q", n, outcome)
		}
	}
}

func (u *upgradeTest) loop(c *client, q request, ended chan struct{}) {
	for {
		r, err := c.ask(q)
		u.mu.Lock()
		if err != nil {
			u.wrong[err.Error()]++
		}
		for outcome, n := range r.Outcomes {
			u.connections += n
			if len(outcome) < 5 || outcome[:5] != "ok; b" {
				u.wrong[outcome] += n
			}
		}
		u.mu.Unlock()
		select {
		case <-ended:
			return
		default:
		}
		if err != nil {
			return
		}
	}
}

// process is a child that a test talks to.
type process struct {
	*upgradeTest
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.Reader
}

func (u *upgradeTest) process(cmd *exec.Cmd) *process {
	u.Helper()
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		u.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		u.Fatal(err)
	}
	u.Cleanup(func() { _ = cmd.Process.Kill() }) // if the test ended early
	return &process{u, cmd, in, out}
}

func (p *process) expect(word string) {
	p.Helper()
	text := make([]byte, len(word)+1)
	if _, err := io.ReadFull(p.out, text); err != nil || string(text) != word+"\n" {
		p.Fatalf("want %q, got %q, %v", word, text, err)
	}
}

// successor starts an agent of a version outside the cgroup.
func (u *upgradeTest) successor(version string) *process {
	u.Helper()
	u.job.Version = version
	text, err := json.Marshal(u.job)
	if err != nil {
		u.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", string(text))
	cmd.Env = append(os.Environ(), roleVariable+"=successor")
	cmd.Stderr = os.Stderr
	return u.process(cmd)
}

func (p *process) kill() {
	p.Helper()
	if err := errors.Join(p.cmd.Process.Kill(), ignoreExit(p.cmd.Wait())); err != nil {
		p.Error(err)
	}
}

func (p *process) end() {
	p.Helper()
	_ = p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		p.Error(err)
	}
}

// TestUpgradeAndKillsUnderLoad: agents of both versions take over from each
// other, ended in order or killed at any moment of their start and of their work,
// and no connection fails or breaks.
func TestUpgradeAndKillsUnderLoad(t *testing.T) {
	u := newUpgrade(t)
	stop := u.traffic()
	versions := []string{present, former}
	for i := range campaign(2, 20) * 2 {
		p := u.successor(versions[i%2])
		p.expect("loaded")
		u.wait(20 * time.Millisecond)
		p.end()
	}
	for range campaign(8, 100) {
		p := u.successor(versions[u.random.IntN(2)])
		u.wait(200 * time.Millisecond)
		p.kill()
	}
	for enough := campaign(4000, 100000); u.requests() < enough; {
		u.wait(10 * time.Millisecond)
	}
	stop()
	u.load() // the present version, which reads back what they left
	if d := u.dump(); len(d.Frontends) != len(u.job.Services) {
		t.Errorf("%d frontends left", len(d.Frontends))
	} else {
		for _, f := range d.Frontends {
			if n := len(f.Backends); n == 0 || n != int(f.Header.Selected()) {
				t.Errorf("frontend %d has %d backends, %d selected", f.ID, n, f.Header.Selected())
			}
		}
	}
}

// wait passes a random time, which is the point at which a process is killed.
func (u *upgradeTest) wait(most time.Duration) {
	time.Sleep(time.Duration(u.random.Int64N(int64(most))))
}

func (u *upgradeTest) requests() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.connections
}
