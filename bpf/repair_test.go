package bpf

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/privilege"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
)

// repair lets the datapath repair itself on a thread without any capability, as
// an agent that has given them up.
func (f *fixture) repair() []Repair {
	f.Helper()
	type result struct {
		repairs []Repair
		err     error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := dropCapabilities(); err != nil {
			done <- result{err: err}
			return
		}
		done <- result{repairs: f.dp.Repair()}
	}()
	r := <-done
	if r.err != nil {
		f.Fatal(r.err)
	}
	return r.repairs
}

func dropCapabilities() error {
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// repaired runs one repair and checks that it found this and no more, that
// everything is as before, and that a second one finds nothing.
func (f *fixture) repaired(before objects, want ...string) {
	f.Helper()
	var got []string
	for _, r := range f.repair() {
		got = append(got, r.Kind+" "+r.Name+": "+r.Found)
		if r.Err != nil {
			f.Errorf("repair of %s %s: %v", r.Kind, r.Name, r.Err)
		}
	}
	if !reflect.DeepEqual(got, want) {
		f.Errorf("repaired:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if again := f.repair(); len(again) > 0 {
		f.Errorf("second repair: %+v", again)
	}
	if after := f.pinned(); !reflect.DeepEqual(before, after) {
		f.Errorf("pins:\nbefore %v\nafter  %v", before, after)
	}
}

// repairFixture is a datapath with one service, and what shows that it works.
func repairFixture(t *testing.T) (f *fixture, before objects, works func()) {
	f = newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("b", "127.0.0.2:0", tcp))
	works = func() {
		f.Helper()
		f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80", "peer", "recv"), "ok; 10.96.0.1:80; b")
	}
	works()
	if all := f.repair(); len(all) > 0 {
		t.Errorf("repairs of what is whole: %+v", all)
	}
	return f, f.pinned(), works
}

// TestRepairPins deletes every pin and puts foreign objects in its place.
func TestRepairPins(t *testing.T) {
	f, before, works := repairFixture(t)
	pins, err := Pins(f.opts)
	if err != nil {
		t.Fatal(err)
	}
	foreign := foreignObjects(t)
	files := openFiles(t)
	var missing []string
	for _, p := range pins {
		f.removePin(p.Name)
		f.repaired(before, p.Kind+" "+p.Name+": no pin")
		for _, other := range foreign {
			f.removePin(p.Name)
			if err := other.Pin(filepath.Join(f.opts.PinDir, p.Name)); err != nil {
				t.Fatal(err)
			}
			f.repaired(before, p.Kind+" "+p.Name+": foreign object")
		}
		missing = append(missing, p.Name)
	}
	for _, name := range missing {
		f.removePin(name)
	}
	if all := f.repair(); len(all) != len(missing) {
		t.Errorf("%d pins repaired of %d", len(all), len(missing))
	}
	f.repaired(before)
	works()
	bpftest.Eventually(t, "descriptors of repairs closed", func() error {
		if n := openFiles(t); n > files {
			return fmt.Errorf("%d are open, before %d", n, files)
		}
		return nil
	})
	f.close()
	f.load() // takes over what was repaired
	works()
	if after := f.pinned(); !reflect.DeepEqual(before.maps, after.maps) || !reflect.DeepEqual(before.links, after.links) {
		t.Errorf("a restart found other maps or links: %v, before %v", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func (f *fixture) removePin(name string) {
	f.Helper()
	if err := os.Remove(filepath.Join(f.opts.PinDir, name)); err != nil {
		f.Fatal(err)
	}
}

// repeatedPin pins copies of an object, however often.
type repeatedPin struct{ clone func() (pinCloser, error) }

func (p repeatedPin) Pin(path string) error {
	c, err := p.clone()
	if err != nil {
		return err
	}
	return errors.Join(c.Pin(path), c.Close())
}

// foreignObjects are a map and a program that are not ours.
func foreignObjects(t *testing.T) []pinner {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 20, ValueSize: 4, MaxEntries: 64})
	if err != nil {
		t.Fatal(err)
	}
	p := refuseAll(t)
	t.Cleanup(func() { _ = m.Close() })
	return []pinner{
		repeatedPin{func() (pinCloser, error) { return m.Clone() }},
		repeatedPin{func() (pinCloser, error) { return p.Clone() }},
	}
}

// refuseAll is a program that lets no connect pass.
func refuseAll(t *testing.T) *ebpf.Program {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestRepairAttachments detaches every link.
func TestRepairAttachments(t *testing.T) {
	f, before, works := repairFixture(t)
	for _, h := range hooks() {
		path := filepath.Join(f.opts.PinDir, linkPrefix+h.name)
		if err := detach(path); err != nil {
			t.Fatal(err)
		}
		got := f.repair()
		if len(got) != 2 || got[0] != (Repair{Kind: RepairAttachment, Name: h.name, Found: "detached"}) ||
			got[1] != (Repair{Kind: RepairLink, Name: linkPrefix + h.name, Found: "foreign object"}) {
			t.Errorf("repaired %+v", got)
		}
		works()
	}
	after := f.pinned()
	f.repaired(after)
	if len(after.links) != len(hooks()) {
		t.Errorf("links: %v", after.links)
	}
	bpftest.Eventually(t, "detached links freed", objects{links: before.links}.gone)
}

// TestLoadReplacesForeignPins: foreign objects under the names of links and
// programs do not keep an agent from starting.
func TestLoadReplacesForeignPins(t *testing.T) {
	f, before, works := repairFixture(t)
	f.close()
	other := refuseAll(t)
	l, err := link.AttachCgroup(link.CgroupOptions{Path: newCgroup(t), Attach: ebpf.AttachCGroupInet4Connect, Program: other})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	same, err := link.AttachCgroup(link.CgroupOptions{Path: f.opts.Cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: other})
	if err != nil {
		t.Fatal(err)
	}
	for pin, foreign := range map[string]pinner{
		"link_connect4": foreignObjects(t)[0], "link_sendmsg4": foreignObjects(t)[1], "link_recvmsg4": l, "link_connect6": same,
		"prog_connect4": foreignObjects(t)[0], "prog_sendmsg4": foreignObjects(t)[1],
	} {
		f.removePin(pin)
		if err := foreign.Pin(filepath.Join(f.opts.PinDir, pin)); err != nil {
			t.Fatal(err)
		}
	}
	if err := same.Close(); err != nil { // its pin alone keeps it attached now
		t.Error(err)
	}
	f.load()
	works()
	if after := f.pinned(); len(after.links) != len(before.links) || len(after.programs) != len(before.programs) || !reflect.DeepEqual(before.maps, after.maps) {
		t.Errorf("pins:\nbefore %v\nafter  %v", before, after)
	}
}

// TestRepairForeignProgram: a program that was put into our link goes out.
func TestRepairForeignProgram(t *testing.T) {
	f, before, works := repairFixture(t)
	l, err := link.LoadPinnedLink(filepath.Join(f.opts.PinDir, "link_connect4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := refuseAll(t)
	if err := l.Update(p); err != nil {
		t.Fatal(err)
	}
	f.only(f.run(1, "4 tcp", "connect 10.96.0.1:80"), "EPERM")
	id, err := programID(p)
	if err != nil {
		t.Fatal(err)
	}
	f.repaired(before, fmt.Sprintf("attachment connect4: foreign program number %d", id))
	works()
}

// TestRepairDirectory: a directory that was opened is private again, and one that
// was removed, or made by somebody else, is filled again and locked.
func TestRepairDirectory(t *testing.T) {
	f, before, works := repairFixture(t)
	if err := os.Chmod(f.opts.PinDir, 0o777); err != nil {
		t.Fatal(err)
	}
	f.repaired(before, "directory "+f.opts.PinDir+": open to others: mode -rwxrwxrwx")
	for _, anew := range []bool{false, true} {
		if err := os.RemoveAll(f.opts.PinDir); err != nil {
			t.Fatal(err)
		}
		if anew {
			if err := os.Mkdir(f.opts.PinDir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got := f.repair(); len(got) != 1+len(before.maps)+len(before.programs)+len(before.links) || got[0].Kind != RepairDirectory {
			t.Errorf("repaired %+v", got)
		}
		f.repaired(before)
		if _, err := Load(f.opts); !errors.Is(err, ErrBusy) {
			t.Errorf("a second load of the new directory: %v", err)
		}
	}
	works()
	f.close()
	f.load()
	works()
}

// TestRepairUnmountedBPFFS: without its bpffs the datapath goes on and says what
// is wrong; on a new one everything is pinned again.
func TestRepairUnmountedBPFFS(t *testing.T) {
	f, before, works := repairFixture(t)
	mountpoint := filepath.Dir(f.opts.PinDir)
	if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got := f.repair()
		if len(got) != 1 || got[0].Kind != RepairDirectory || got[0].Err == nil || errors.Is(got[0].Err, ErrRights) ||
			!strings.Contains(got[0].Err.Error(), "mount -t bpf bpf "+mountpoint) {
			t.Errorf("repaired %+v", got)
		}
		works()
	}
	if err := unix.Mount("bpf", mountpoint, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	if got := f.repair(); len(got) < 2 || got[0].Kind != RepairDirectory || got[0].Err != nil {
		t.Errorf("repaired %+v", got)
	}
	f.repaired(before)
	works()
	f.close()
	works()
	f.load()
	works()
}

// TestRepairCgroupMadeAnew: programs go where the cgroup is now; while it is
// gone, that is said.
func TestRepairCgroupMadeAnew(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("b", "127.0.0.2:0", tcp))
	before := f.pinned()
	if err := os.Remove(f.opts.Cgroup); err != nil {
		t.Fatal(err)
	}
	got := f.repair()
	if len(got) != 1 || !errors.Is(got[0].Err, fs.ErrNotExist) || got[0].Kind != RepairAttachment {
		t.Errorf("repaired %+v", got)
	}
	if err := os.Mkdir(f.opts.Cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := f.repair(); len(got) != 2*len(hooks()) {
		t.Errorf("repaired %+v", got)
	}
	f.repaired(f.pinned())
	f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; b")
	bpftest.Eventually(t, "old links freed", objects{links: before.links}.gone)
}

// TestRepairBesideAnotherAgent: a directory that somebody else has made and
// locked is left to them.
func TestRepairBesideAnotherAgent(t *testing.T) {
	f, _, works := repairFixture(t)
	if err := os.RemoveAll(f.opts.PinDir); err != nil {
		t.Fatal(err)
	}
	other, err := Load(f.opts)
	if err != nil {
		t.Fatal(err)
	}
	theirs := f.pinned()
	got := f.repair()
	if len(got) != 1 || !errors.Is(got[0].Err, ErrBusy) {
		t.Errorf("repaired %+v", got)
	}
	if now := f.pinned(); !reflect.DeepEqual(theirs, now) {
		t.Errorf("pins: %v, were %v", now, theirs)
	}
	works()
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

// runRepairer is a process that loads a datapath, gives up all privileges as an
// agent does, and then repairs at each line it reads, saying what it found.
func runRepairer(pinDir, cgroup string, in io.Reader, out io.Writer) error {
	dp, err := Load(Options{PinDir: pinDir, Cgroup: cgroup})
	if err != nil {
		return err
	}
	kept, err := privilege.Drop(dp.WaitRCU)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "kept %d\n", kept.Len())
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var text []string
		for _, r := range dp.Repair() {
			text = append(text, fmt.Sprintf("%s %s %s %v", r.Kind, r.Name, r.Found, r.Err))
		}
		fmt.Fprintln(out, strings.Join(text, ";"))
	}
	return dp.Close()
}

// TestRepairBehindTheFilter repairs everything in a process that has dropped its
// privileges, seccomp filter included.
func TestRepairBehindTheFilter(t *testing.T) {
	f, before, works := repairFixture(t)
	f.close()
	cmd := exec.Command("/proc/self/exe", f.opts.PinDir, f.opts.Cgroup)
	cmd.Env = append(os.Environ(), roleVariable+"=repairer")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		if err := cmd.Wait(); strings.Contains(complaint.String(), "has cgo") {
			t.Skip("a binary with cgo, as the race detector needs it, cannot drop its privileges")
		} else {
			t.Fatal(err, &complaint)
		}
	}
	ask := func() string {
		fmt.Fprintln(in)
		lines.Scan()
		return lines.Text()
	}
	for _, p := range []string{"cm_slab", "prog_connect4", "link_connect6"} {
		f.removePin(p)
	}
	if got, want := ask(), "map cm_slab no pin <nil>;program prog_connect4 no pin <nil>;link link_connect6 no pin <nil>"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := errors.Join(detach(filepath.Join(f.opts.PinDir, "link_connect4")), os.RemoveAll(f.opts.PinDir)); err != nil {
		t.Error(err)
	}
	if got := ask(); !strings.HasPrefix(got, "attachment connect4 detached <nil>;directory ") || strings.Count(got, " <nil>") != 2+len(before.links)+len(before.programs)+len(before.maps) {
		t.Errorf("got %q", got)
	}
	if got := ask(); got != "" {
		t.Errorf("second repair: %q", got)
	}
	works()
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err, &complaint)
	}
	works()
	f.load()
	works()
}

// TestRepairRefused: what the kernel refuses asks for a new start.
func TestRepairRefused(t *testing.T) {
	for err, want := range map[error]bool{unix.EPERM: true, fs.ErrPermission: false, unix.EACCES: true, unix.ENOENT: false, nil: false} {
		got := withRights(err)
		if errors.Is(got, ErrRights) != want || (err == nil) != (got == nil) {
			t.Errorf("%v: got %v", err, got)
		}
	}
}

func BenchmarkRepair(b *testing.B) {
	f := newFixture(b)
	for b.Loop() {
		if got := f.dp.Repair(); len(got) > 0 {
			b.Fatalf("repaired %+v", got)
		}
	}
}
