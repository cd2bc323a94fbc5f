package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
)

// Rolling is what a deployment does to all services at once: a writer replaces one
// backend of one service after the other, while clients connect all the time. The
// servers say at which address a client reached them, and every address has the
// number of its service and of the change that brought it, so that a client knows
// whether its backend was already gone.

const (
	rollBackends = 4
	rollFirst    = 16   // the first change's number
	rollNumbers  = 14   // bits of an address for the number of a change
	rollRate     = 1000 // changes a second
	rollConnects = 2000 // a second
	rollPort     = 7000
)

// rollAddr is the backend that change k brings to a service.
func rollAddr(service, k uint32) netip.Addr {
	n := service<<rollNumbers | k&(1<<rollNumbers-1)
	return netip.AddrFrom4([4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)})
}

func rollParse(addr []byte) (service, k uint32) {
	n := uint32(addr[1])<<16 | uint32(addr[2])<<8 | uint32(addr[3])
	return n >> rollNumbers, n & (1<<rollNumbers - 1)
}

// Each eighth service is of TCP.
func rollProtocol(service uint32) lb.Protocol {
	if service%8 == 7 {
		return lb.TCP
	}
	return lb.UDP
}

// rollTable is a service after change k: the backends of the last four changes.
func rollTable(service, k uint32) lb.FrontendTable {
	t := lb.FrontendTable{
		Service: lb.ServiceName{Namespace: "roll", Name: fmt.Sprint(service)},
		Frontend: lb.Frontend{
			Addr:     netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 98, byte(service >> 8), byte(service)}), rollPort),
			Protocol: rollProtocol(service),
		},
	}
	for i := range uint32(rollBackends) {
		t.Backends = append(t.Backends, lb.Choice{Selected: true, Weight: 1, Backend: lb.Backend{
			Addr: netip.AddrPortFrom(rollAddr(service, k-i), rollPort), Protocol: t.Frontend.Protocol, Cluster: "c", ClusterID: 1,
		}})
	}
	return t
}

// runRoller is the writer: it takes over what is pinned, finishes the change that
// its predecessor may have died in, says so, and goes on until its input ends.
func runRoller(pinDir, cgroup, board string, in io.Reader, out io.Writer) error {
	b, err := openBoard(board)
	if err != nil {
		return err
	}
	dp, err := Load(Options{PinDir: pinDir, Cgroup: cgroup, MaxFrontends: 2048, MaxRecords: 1 << 16})
	if err != nil {
		return err
	}
	w := &stormWriter{dp: dp, r: datapath.New(dp)}
	loaded, err := w.r.Load()
	if err != nil || len(loaded.Repairs) > 0 {
		return fmt.Errorf("load: %w, repairs %v", err, loaded.Repairs)
	}
	for i := range b {
		if b[i].begun.Load() == 0 {
			b[i].begun.Store(rollFirst)
		}
		if err := w.roll(b, i); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "loaded")
	return errors.Join(w.rollOn(b, endOf(in)), dp.Close())
}

// endOf is closed when the input ends.
func endOf(in io.Reader) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	return ended
}

// roll publishes the change that has begun.
func (w *stormWriter) roll(b []rollState, i int) error {
	k := b[i].begun.Load()
	t := rollTable(uint32(i), k)
	if _, err := w.r.Set(t.Service, []lb.FrontendTable{t}); err != nil {
		return err
	}
	b[i].done.Store(k)
	return nil
}

// rollOn begins changes at the rate of the test, and catches up if it is late.
func (w *stormWriter) rollOn(b []rollState, ended <-chan struct{}) error {
	pace := newPace(rollRate)
	for n := boardSum(b); ; n++ {
		select {
		case <-ended:
			return nil
		default:
		}
		pace.await()
		i := n % len(b)
		b[i].begun.Add(1)
		if err := w.roll(b, i); err != nil {
			return err
		}
		if n%512 == 0 {
			if err := w.grace(); err != nil {
				return err
			}
		}
	}
}

// pace lets so many pass in a second, in bursts if it was held up for up to one.
type pace struct {
	each time.Duration
	next time.Time
}

func newPace(rate int) *pace { return &pace{time.Second / time.Duration(rate), time.Now()} }

func (p *pace) await() {
	now := time.Now()
	if p.next.Before(now.Add(-time.Second)) {
		p.next = now.Add(-time.Second)
	}
	if wait := p.next.Sub(now); wait > 0 {
		time.Sleep(wait)
	}
	p.next = p.next.Add(p.each)
}

// rolling is a roll under way.
type rolling struct {
	*upgradeTest
	path     string
	board    []rollState
	lives    int
	writer   *process
	changes0 int // before the present life
}

func newRolling(t *testing.T, services int) *rolling {
	r := &rolling{upgradeTest: &upgradeTest{fixture: newPlace(t)}, path: filepath.Join(t.TempDir(), "board")}
	if err := os.WriteFile(r.path, make([]byte, services*rollStateSize), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.board, err = openBoard(r.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(boardBytes(r.board)) })
	r.rollServers()
	return r
}

func (r *rolling) startWriter() {
	r.Helper()
	cmd := exec.Command("/proc/self/exe", r.opts.PinDir, r.opts.Cgroup, r.path)
	cmd.Env = append(os.Environ(), roleVariable+"=roller")
	cmd.Stderr = os.Stderr
	r.writer = r.process(cmd)
	r.writer.expect("loaded")
	r.lives++
	r.changes0 = boardSum(r.board)
}

// rollFor lets it roll until there were so many changes, or so much time has
// passed, and kills and replaces the writer whenever it has lived for long enough.
func (r *rolling) rollFor(changes int, most time.Duration, kill func(age time.Duration, changes int) bool) {
	r.Helper()
	begin, born := time.Now(), time.Now()
	first := boardSum(r.board)
	for time.Since(begin) < most {
		n := boardSum(r.board)
		if n-first >= changes {
			return
		}
		if kill(time.Since(born), n-r.changes0) {
			r.writer.kill()
			r.startWriter()
			born = time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestRolling: no client gets a backend after its removal was published, none
// fails, connections stay with their backend, and each of the backends in force is
// as likely as the others; whether the writer lives or is killed again and again.
func TestRolling(t *testing.T) {
	services := campaign(200, 1000)
	lives := func(time.Duration, int) bool { return false }
	t.Run("writer lives", func(t *testing.T) { testRolling(t, services, lives) })
	t.Run("writer is killed", func(t *testing.T) {
		testRolling(t, services, func(age time.Duration, changes int) bool {
			return changes >= 400 && age >= time.Duration(campaign(0, 30))*time.Second
		})
	})
}

func testRolling(t *testing.T, services int, kill func(time.Duration, int) bool) {
	r := newRolling(t, services)
	r.startWriter()
	reader := r.process(r.inCgroup(r.opts.Cgroup, "roll reader", r.path))
	reader.expect("reading")
	begin := time.Now()
	r.rollFor(campaign(8*services, 600*rollRate), 10*time.Minute, kill)
	elapsed := time.Since(begin)
	_ = reader.in.Close()
	var seen rollReport
	if err := json.NewDecoder(reader.out).Decode(&seen); err != nil {
		t.Errorf("hear from reader: %v", err)
	}
	if err := reader.cmd.Wait(); err != nil {
		t.Error(err)
	}
	r.writer.end()
	r.judge(&seen, elapsed)
}

func (r *rolling) judge(seen *rollReport, elapsed time.Duration) {
	r.Helper()
	changes := boardSum(r.board) - len(r.board)*rollFirst
	x, freedom, p := seen.chiSquare()
	r.Logf("%d services, %.0f s: %d changes (%.0f/s) in %d lives of the writer, %d connects (%.0f/s) and %d uses of %d held ones (load average %s)",
		len(r.board), elapsed.Seconds(), changes, float64(changes)/elapsed.Seconds(), r.lives, seen.Connects, float64(seen.Connects)/elapsed.Seconds(), seen.Again, rollHeld, loadAverage())
	r.Logf("removed backends %d, foreign %d, moved %d, failures %v; chi-square %.1f of %.0f degrees, p %.3f",
		seen.Removed, seen.Foreign, seen.Moved, seen.Failures, x, freedom, p)
	if seen.Removed+seen.Foreign+seen.Moved+len(seen.Failures) > 0 || seen.Connects == 0 {
		r.Errorf("%+v", seen)
	}
	if least := 1 / float64(campaign(1_000_000, 100)); p < least {
		r.Errorf("the backends in force are not equally likely: chi-square %.1f of %.0f degrees, p %g", x, freedom, p)
	}
	for i := range r.board {
		if n := r.board[i].done.Load(); n < rollFirst+rollBackends {
			r.Errorf("service %d was not rolled: %d changes", i, n-rollFirst)
		}
	}
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// chiSquare compares how often each backend in force was chosen, by its age and by
// group of services. p is by Wilson and Hilferty's approximation.
func (seen *rollReport) chiSquare() (x, freedom, p float64) {
	for _, ages := range seen.Counts {
		sum := 0
		for _, n := range ages {
			sum += n
		}
		if sum < 5*rollBackends {
			continue
		}
		each := float64(sum) / rollBackends
		for _, n := range ages {
			x += (float64(n) - each) * (float64(n) - each) / each
		}
		freedom += rollBackends - 1
	}
	if freedom == 0 {
		return 0, 0, 0
	}
	z := (math.Cbrt(x/freedom) - (1 - 2/(9*freedom))) / math.Sqrt(2/(9*freedom))
	return x, freedom, math.Erfc(z/math.Sqrt2) / 2
}

// runRollReader connects to random services until its input ends.
func runRollReader(path string, in io.Reader, out io.Writer) error {
	b, err := openBoard(path)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "reading")
	return json.NewEncoder(out).Encode(readRolls(b, endOf(in)))
}
