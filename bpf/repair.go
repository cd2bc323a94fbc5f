package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Kinds of a Repair.
const (
	RepairDirectory  = "directory"  // the pin directory or its bpffs
	RepairAttachment = "attachment" // a link that ran our program on our cgroup
	RepairLink       = "link"       // the pin of a link
	RepairProgram    = "program"    // the pin of a program
	RepairMap        = "map"        // the pin of a map
)

// ErrRights says that a repair needs capabilities that this process does not
// have. The next Load, with them, repairs it and takes over all that is pinned.
var ErrRights = errors.New("needs capabilities that the process gave up; a new start has them")

// Repair is one thing that was found other than Load had made it.
type Repair struct {
	Kind  string // a Repair constant
	Name  string // of the pin or the hook
	Found string // what was there instead
	// Err is why it could not be put right, or nil if it was. It is ErrRights if
	// another start can do it.
	Err error
}

// RepairKinds are all kinds of repairs.
func RepairKinds() []string {
	return []string{RepairDirectory, RepairAttachment, RepairLink, RepairProgram, RepairMap}
}

// Repair looks whether everything is still as Load made it: the pin directory,
// every pin, and every program on its hook of the cgroup. What is not it makes
// so again out of what this process holds, which needs no capability: links are
// attached again, and pins, missing or of foreign objects, are pinned again. It
// returns what it found, nothing if all is well.
//
// Any one goroutine may call it while another writes the maps.
func (d *Datapath) Repair() []Repair {
	found := d.repairAttachments()
	r := d.repairDirectory()
	if r.Found != "" {
		found = append(found, r)
	}
	if r.Err == nil {
		found = append(found, d.repairPins()...)
	}
	return found
}

// withRights turns a refusal of the kernel into ErrRights.
func withRights(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", ErrRights, err)
	}
	return err
}

func (d *Datapath) repairAttachments() []Repair {
	var found []Repair
	id, err := cgroupID(d.cgroup)
	if err != nil { // programs go on in what is left of the cgroup
		return []Repair{{Kind: RepairAttachment, Name: d.cgroup, Found: "no such cgroup", Err: err}}
	}
	for _, h := range hooks() {
		if d.links[h.name] == nil {
			continue
		}
		if what, repair := d.attachmentFault(h, id); what != "" {
			found = append(found, Repair{Kind: RepairAttachment, Name: h.name, Found: what, Err: withRights(repair())})
		}
	}
	return found
}

// attachmentFault says what is wrong with the link of a hook and what repairs it.
func (d *Datapath) attachmentFault(h hook, cgroup uint64) (string, func() error) {
	prog, l := d.coll.Programs[h.program()], d.links[h.name]
	again := func() error { return d.attachAgain(h, prog) }
	info, err := l.Info()
	if err != nil {
		return err.Error(), again
	}
	switch c := info.Cgroup(); {
	case c == nil || c.CgroupId == 0:
		return "detached", again
	case c.CgroupId != cgroup:
		return fmt.Sprintf("attached to cgroup number %d, which is not that of %q", c.CgroupId, d.cgroup), again
	case info.Program != d.memo.programs[h.name]:
		return fmt.Sprintf("foreign program number %d", info.Program), func() error { return l.Update(prog) }
	}
	return "", nil
}

// memo keeps what never changes while Load's work is whole. So a look costs
// little, and needs no right to open what is pinned.
type memo struct {
	programs map[string]ebpf.ProgramID // by hook
	pins     map[string]fileID         // by name, the files that are ours
}

// fileID tells files apart. On a bpffs a file is one object for all its life.
type fileID struct{ dev, inode uint64 }

func newMemo() memo {
	return memo{programs: map[string]ebpf.ProgramID{}, pins: map[string]fileID{}}
}

func fileOf(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, fmt.Errorf("look at pin: %w", err)
	}
	return fileID{st.Dev, st.Ino}, nil
}

// know notes, at the end of Load, which programs and pins are ours.
func (d *Datapath) know(Options) error {
	for name := range d.links {
		id, err := programID(d.coll.Programs[hook{name: name}.program()])
		if err != nil {
			return err
		}
		d.memo.programs[name] = id
	}
	for _, o := range d.heldObjects() {
		path := filepath.Join(d.dir, o.name)
		file, err := fileOf(path)
		if err != nil {
			return err
		}
		if same, err := o.same(path); err != nil {
			return fmt.Errorf("look at pin %q: %w", path, err)
		} else if same {
			d.memo.pins[o.name] = file
		}
	}
	return nil
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("read program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// attachAgain puts a new link in the place of one that is of no use any more.
// The pin follows with the other pins.
func (d *Datapath) attachAgain(h hook, prog *ebpf.Program) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: d.cgroup, Attach: h.attach, Program: prog})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	old := d.links[h.name]
	d.links[h.name] = l
	delete(d.memo.pins, linkPrefix+h.name)
	return old.Close()
}

// repairDirectory makes sure that PinDir is the directory that this process has
// locked, on a bpffs and private.
func (d *Datapath) repairDirectory() Repair {
	r := Repair{Kind: RepairDirectory, Name: d.dir}
	locked, err := d.lock.Stat()
	if err != nil {
		r.Found, r.Err = "no access", err
		return r
	}
	now, err := os.Stat(d.dir)
	switch {
	case err == nil && os.SameFile(locked, now) && now.Mode().Perm() == 0o700:
		return r
	case err == nil && os.SameFile(locked, now):
		r.Found, r.Err = fmt.Sprintf("open to others: mode %v", now.Mode().Perm()), os.Chmod(d.dir, 0o700)
	case err == nil:
		r.Found, r.Err = "another directory", d.newPinDir()
	default:
		r.Found, r.Err = err.Error(), d.newPinDir()
	}
	r.Err = withRights(r.Err)
	return r
}

// newPinDir makes the directory anew and takes its lock. It does not mount a
// bpffs, because objects that only this process holds would be lost if it ended
// for the right to do so; when somebody has mounted one, it goes on there.
func (d *Datapath) newPinDir() error {
	if err := preparePinDir(Options{PinDir: d.dir}); err != nil {
		return fmt.Errorf("%w; until then what is loaded lives as long as this process", err)
	}
	lock, err := lockPinDir(d.dir)
	if err != nil {
		return err
	}
	old := d.lock
	d.lock = lock
	return unlock(old)
}

// held is an object that this process has open and wants pinned.
type held struct {
	kind, name string
	// same says whether what is pinned at a path is this object.
	same func(path string) (bool, error)
	// pin pins it, once more if need be.
	pin func(path string) error
}

// repairPins visits the pins in the order of an attachment: maps first.
func (d *Datapath) repairPins() []Repair {
	var found []Repair
	for _, o := range d.heldObjects() {
		path := filepath.Join(d.dir, o.name)
		file, err := fileOf(path)
		if err == nil && file == d.memo.pins[o.name] {
			continue
		}
		r := Repair{Kind: o.kind, Name: o.name, Found: "foreign object"}
		if errors.Is(err, fs.ErrNotExist) {
			r.Found = "no pin"
		}
		r.Err = withRights(d.pinAgain(o, path))
		found = append(found, r)
	}
	return found
}

func (d *Datapath) pinAgain(o held, path string) error {
	if err := o.pin(path); err != nil {
		return err
	}
	file, err := fileOf(path)
	d.memo.pins[o.name] = file
	return err
}

func (d *Datapath) heldObjects() []held {
	var all []held
	for _, name := range slices.Sorted(maps.Keys(d.coll.Maps)) {
		if !isData(name) {
			all = append(all, heldMap(name, d.coll.Maps[name]))
		}
	}
	for _, h := range hooks() {
		if l := d.links[h.name]; l != nil {
			all = append(all, heldProgram(programPrefix+h.name, d.coll.Programs[h.program()]), heldLink(linkPrefix+h.name, l))
		}
	}
	return all
}

func heldMap(name string, m *ebpf.Map) held {
	id := func(m *ebpf.Map) (ebpf.MapID, error) {
		info, err := m.Info()
		if err != nil {
			return 0, err
		}
		n, _ := info.ID()
		return n, nil
	}
	return held{RepairMap, name,
		func(path string) (bool, error) {
			there, err := ebpf.LoadPinnedMap(path, nil)
			return sameObject(m, there, err, id)
		},
		func(path string) error {
			c, err := m.Clone()
			return pinCopy(c, err, path)
		},
	}
}

func heldProgram(name string, p *ebpf.Program) held {
	return held{RepairProgram, name,
		func(path string) (bool, error) {
			there, err := ebpf.LoadPinnedProgram(path, nil)
			return sameObject(p, there, err, programID)
		},
		func(path string) error {
			c, err := p.Clone()
			return pinCopy(c, err, path)
		},
	}
}

func heldLink(name string, l link.Link) held {
	id := func(l link.Link) (link.ID, error) {
		info, err := l.Info()
		if err != nil {
			return 0, err
		}
		return info.ID, nil
	}
	return held{RepairLink, name,
		func(path string) (bool, error) {
			there, err := link.LoadPinnedLink(path, nil)
			return sameObject(l, there, err, id)
		},
		func(path string) error {
			c, err := cloneLink(l)
			return pinCopy(c, err, path)
		},
	}
}

// cloneLink is another descriptor of the same link, which knows of no pin.
func cloneLink(l link.Link) (link.Link, error) {
	open, ok := l.(interface{ FD() int })
	if !ok {
		return nil, fmt.Errorf("copy link: %T has no descriptor", l)
	}
	fd, err := unix.FcntlInt(uintptr(open.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy link: %w", err)
	}
	return link.NewFromFD(fd)
}

type closer interface{ Close() error }

// sameObject compares the kernel's numbers of ours and of what was opened.
func sameObject[T closer, ID comparable](ours, there T, openErr error, id func(T) (ID, error)) (bool, error) {
	if openErr != nil {
		return false, openErr
	}
	want, err1 := id(ours)
	have, err2 := id(there)
	err := errors.Join(err1, err2, there.Close())
	return err == nil && want == have, err
}

type pinCloser interface {
	pinner
	closer
}

// pinCopy pins a copy of an object's descriptor at path, in the place of
// whatever is there, and closes the copy.
func pinCopy(c pinCloser, err error, path string) error {
	if err != nil {
		return err
	}
	err = replacePin(c, path)
	if err != nil && os.Remove(path) == nil { // an empty directory cannot be replaced
		err = replacePin(c, path)
	}
	return errors.Join(err, c.Close())
}
