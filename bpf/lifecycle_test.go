package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// objects are the kernel's numbers of everything that a datapath made.
type objects struct {
	maps     map[string]ebpf.MapID
	programs map[string]ebpf.ProgramID
	links    map[string]link.ID
}

// pinned reads the numbers out of the pin directory.
func (f *fixture) pinned() objects {
	f.Helper()
	o := objects{map[string]ebpf.MapID{}, map[string]ebpf.ProgramID{}, map[string]link.ID{}}
	pins, err := Pins(f.opts)
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range pins {
		if err := o.add(filepath.Join(f.opts.PinDir, p.Name), p); err != nil {
			f.Fatal(err)
		}
	}
	return o
}

func (o objects) add(path string, p Pin) error {
	switch p.Kind {
	case "link":
		return o.addLink(path, p.Name)
	case "program":
		return o.addProgram(path, p.Name)
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return err
	}
	o.maps[p.Name], _ = info.ID()
	return nil
}

func (o objects) addLink(path, name string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	o.links[name] = info.ID
	return nil
}

func (o objects) addProgram(path, name string) error {
	p, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		return err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return err
	}
	o.programs[name], _ = info.ID()
	return nil
}

// gone returns an error while the kernel still has any of the objects.
func (o objects) gone() error {
	var left []error
	check := func(name string, object interface{ Close() error }, err error) {
		if err == nil {
			left = append(left, fmt.Errorf("%s still exists", name), object.Close())
		} else if !errors.Is(err, fs.ErrNotExist) {
			left = append(left, err)
		}
	}
	for name, id := range o.maps {
		m, err := ebpf.NewMapFromID(id)
		check(name, m, err)
	}
	for name, id := range o.programs {
		p, err := ebpf.NewProgramFromID(id)
		check(name, p, err)
	}
	for name, id := range o.links {
		l, err := link.NewFromID(id)
		check(name, l, err)
	}
	return errors.Join(left...)
}

func (f *fixture) close() {
	f.Helper()
	if err := f.dp.Close(); err != nil {
		f.Fatal(err)
	}
}

func TestRestartTakesOver(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("b", "127.0.0.2:0", tcp))
	before, held := f.pinned(), f.dump()
	works := func() { f.only(f.run(20, "4 tcp", "connect 10.96.0.1:80", "peer", "recv"), "ok; 10.96.0.1:80; b") }
	works()

	f.close()
	works() // stop is not remove
	f.load()
	after := f.pinned()
	if !reflect.DeepEqual(before.maps, after.maps) || !reflect.DeepEqual(before.links, after.links) {
		t.Errorf("maps or links changed:\nbefore %v\nafter  %v", before, after)
	}
	if got := f.dump(); !reflect.DeepEqual(got, held) {
		t.Errorf("entries changed:\nbefore %+v\nafter  %+v", held, got)
	}
	works()
	f.hasNewPrograms(before, after)
	if c := f.counters(); c.Hits != 60 {
		t.Errorf("counters did not survive: %+v", c)
	}
}

// hasNewPrograms checks that the links run the new life's programs and nothing
// keeps the old ones.
func (f *fixture) hasNewPrograms(before, after objects) {
	f.Helper()
	if len(after.programs) != len(hooks()) || len(after.links) != len(hooks()) {
		f.Errorf("want %d programs and links, got %v", len(hooks()), after)
	}
	for _, l := range f.dp.links {
		info, err := l.Info()
		if err != nil {
			f.Fatal(err)
		}
		for name, id := range before.programs {
			if id == info.Program {
				f.Errorf("a link still runs the old %s", name)
			}
		}
	}
	bpftest.Eventually(f, "old programs freed", objects{programs: before.programs}.gone)
}

func (f *fixture) dump() layout.Dump {
	f.Helper()
	d, err := f.dp.Dump()
	if err != nil {
		f.Fatal(err)
	}
	return d
}

// runLoader is the main program of a process that loads a datapath, says so and
// then waits to be killed.
func runLoader(pinDir, cgroup string) error {
	dp, err := Load(Options{PinDir: pinDir, Cgroup: cgroup, MaxFrontends: 64, MaxRecords: 4096})
	if err != nil {
		return err
	}
	fmt.Println("loaded")
	_, _ = os.Stdin.Read(make([]byte, 1)) // blocks for ever
	return dp.Close()
}

func TestKillKeepsTranslation(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("b", "127.0.0.2:0", tcp))
	works := func() { f.only(f.run(20, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; b") }
	f.close()
	for range 2 {
		f.killLoader()
		works()
	}
	f.load() // the lock died with the process
	works()
}

// killLoader starts another process that takes the datapath over, and kills it.
func (f *fixture) killLoader() {
	f.Helper()
	cmd := f.inCgroup(f.opts.Cgroup, "loader", f.opts.PinDir, f.opts.Cgroup)
	in, err := cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		f.Errorf("loader said nothing: %v", err)
	}
	if err := errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait())); err != nil {
		f.Fatal(err)
	}
}

// ignoreExit drops the report of a process that was killed on purpose.
func ignoreExit(err error) error {
	if err != nil && strings.Contains(err.Error(), "signal: killed") {
		return nil
	}
	return fmt.Errorf("want a kill, got %v", err)
}

func TestCleanupLeavesNothing(t *testing.T) {
	f := newFixture(t)
	b := f.backend("b", "127.0.0.9:0", tcp)
	f.service(addrOf(b), tcp) // refuses, as long as the programs are in force
	f.only(f.run(3, "4 tcp", "connect "+addrOf(b), "recv"), "ECONNREFUSED; ENOTCONN")
	all := f.pinned()
	if len(all.maps) != 18 || len(all.programs) != 9 || len(all.links) != 9 {
		t.Errorf("want 18 maps, 9 programs, 9 links, got %v", all)
	}
	if err := Cleanup(f.opts); !errors.Is(err, ErrBusy) {
		t.Errorf("cleanup under a running agent: got %v, want %v", err, ErrBusy)
	}
	f.close()
	var log bytes.Buffer
	f.opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	for range 2 { // twice, for it is idempotent
		if err := Cleanup(f.opts); err != nil {
			t.Error(err)
		}
	}
	want := []string{fmt.Sprintf("removed links, programs and maps\" key=%s n=36", f.opts.PinDir), fmt.Sprintf("nothing is pinned here\" key=%s", f.opts.PinDir)}
	if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != 2 || !strings.HasSuffix(lines[0], want[0]) || !strings.HasSuffix(lines[1], want[1]) {
		t.Errorf("logged %q, want a line each for %q", lines, want)
	}
	if _, err := os.Stat(f.opts.PinDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pin directory: %v", err)
	}
	f.only(f.run(3, "4 tcp", "connect "+addrOf(b), "recv"), "ok; b")
	bpftest.Eventually(t, "objects freed", all.gone)
}

func TestCleanupKeepsWhatIsNotOurs(t *testing.T) {
	f := newFixture(t)
	foreign := filepath.Join(f.opts.PinDir, "other")
	if err := f.dp.rcu.inner.Pin(foreign); err != nil {
		t.Fatal(err)
	}
	f.close()
	if err := Cleanup(f.opts); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}

func TestPinsArePrivate(t *testing.T) {
	f := newFixture(t)
	want := map[string]os.FileMode{".": 0o700}
	pins, err := Pins(f.opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		want[p.Name] = 0o600
	}
	for name, mode := range want {
		info, err := os.Stat(filepath.Join(f.opts.PinDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v", name, info.Mode().Perm(), mode)
		}
	}
}

func TestOneWriter(t *testing.T) {
	f := newFixture(t)
	dp, err := Load(f.opts)
	if !errors.Is(err, ErrBusy) {
		t.Errorf("second load: got %v, want %v", err, ErrBusy)
	}
	if dp != nil {
		t.Error("got a datapath with the error")
	}
	if len(f.pinned().links) != len(hooks()) {
		t.Error("the failed load removed links")
	}
}

// TestCloseUnlocksAtOnce stands for a child process that was forked meanwhile.
func TestCloseUnlocksAtOnce(t *testing.T) {
	f := newFixture(t)
	shared, err := unix.Dup(int(f.dp.lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(shared)
	f.close()
	f.load()
}

func TestOtherLayoutIsRefused(t *testing.T) {
	f := newFixture(t)
	before := f.pinned()
	info := clustermeshCmInfo{Layout: LayoutVersion + 1}
	if err := f.dp.coll.Maps[clustermeshMapCmInfo].Put(uint32(0), &info); err != nil {
		t.Fatal(err)
	}
	f.close()
	_, err := Load(f.opts)
	if !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), "found 3, need 1 to 2") {
		t.Errorf("got %v", err)
	}
	if !reflect.DeepEqual(before, f.pinned()) {
		t.Error("the refused load changed pins")
	}
	if err := Cleanup(f.opts); err != nil {
		t.Error(err)
	}
}

func TestSizesStayUntilCleanup(t *testing.T) {
	f := newFixture(t)
	f.close()
	f.opts.MaxFrontends, f.opts.MaxRecords = 128, 8192
	f.load()
	if got, want := f.dp.Capacity(), (layout.Capacity{Frontends: 64, Records: 4096}); got != want {
		t.Errorf("capacity: got %+v, want %+v", got, want)
	}
	f.close()
	if err := Cleanup(f.opts); err != nil {
		t.Fatal(err)
	}
	f.load()
	if got, want := f.dp.Capacity(), (layout.Capacity{Frontends: 128, Records: 8192}); got != want {
		t.Errorf("capacity: got %+v, want %+v", got, want)
	}
}

// TestCgroupMadeAnew loads on a cgroup of the same path as one that is gone, as
// after a reboot of a container runtime, and then on another one.
func TestCgroupMadeAnew(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("b", "127.0.0.2:0", tcp))
	f.close()
	old := f.pinned().links
	if err := errors.Join(os.Remove(f.opts.Cgroup), os.Mkdir(f.opts.Cgroup, 0o755)); err != nil {
		t.Fatal(err)
	}
	f.load()
	f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; b")
	bpftest.Eventually(t, "old links freed", objects{links: old}.gone)

	f.close()
	f.client = nil
	elsewhere := f.opts.Cgroup
	f.opts.Cgroup = newCgroup(t)
	f.load()
	f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; b")
	f.client = f.startClient(elsewhere)
	f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80"), "ENETUNREACH")
}

// TestFailedLoadAttachesNothing makes the fifth hook fail.
func TestFailedLoadAttachesNothing(t *testing.T) {
	f := newFixture(t)
	f.close()
	broken := filepath.Join(f.opts.PinDir, linkPrefix+hooks()[4].name)
	for _, h := range hooks() {
		if err := os.Remove(filepath.Join(f.opts.PinDir, linkPrefix+h.name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(broken, 0o700); err != nil { // no link can be pinned here
		t.Fatal(err)
	}
	if _, err := Load(f.opts); err == nil || !strings.Contains(err.Error(), hooks()[4].name) {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if links := f.pinned().links; len(links) != 0 {
		t.Errorf("links stayed: %v", links)
	}
	f.load()
}

func TestPinDirNeedsABPFFS(t *testing.T) {
	f := newPlace(t)
	f.opts.PinDir = filepath.Join(t.TempDir(), "bpf", "clustermesh")
	_, err := Load(f.opts)
	if err == nil || !strings.Contains(err.Error(), "run `mount -t bpf bpf "+filepath.Dir(f.opts.PinDir)+"`") {
		t.Fatalf("got %v", err)
	}
	f.opts.MountBPFFS = true
	t.Cleanup(func() { _ = unix.Unmount(filepath.Dir(f.opts.PinDir), unix.MNT_DETACH) }) // of the mount that Load makes
	f.load()
	f.close()
	if err := Cleanup(f.opts); err != nil {
		t.Error(err)
	}
}

func TestCgroupMustBeCgroup2(t *testing.T) {
	f := newPlace(t)
	f.opts.Cgroup = t.TempDir()
	if _, err := Load(f.opts); err == nil || !strings.Contains(err.Error(), "not on a cgroup2 file system") {
		t.Errorf("got %v", err)
	}
	f.opts.Cgroup = "/no/such/cgroup"
	if _, err := Load(f.opts); err == nil || !strings.Contains(err.Error(), "/no/such/cgroup") {
		t.Errorf("got %v", err)
	}
	if pins, err := Pins(f.opts); err != nil || pins != nil {
		t.Errorf("pins after failures: %v %v", pins, err)
	}
}
