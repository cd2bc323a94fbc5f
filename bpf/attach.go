package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is one place of a cgroup where a program runs.
type hook struct {
	name   string
	attach ebpf.AttachType
}

func (h hook) program() string { return "cm_" + h.name }

// hooks lists them all. What answers comes before what asks, so that no socket
// is translated one way only while they are attached.
func hooks() []hook {
	return []hook{
		{"release", ebpf.AttachCgroupInetSockRelease},
		{"getpeername4", ebpf.AttachCgroupInet4GetPeername},
		{"getpeername6", ebpf.AttachCgroupInet6GetPeername},
		{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
		{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
		{"connect4", ebpf.AttachCGroupInet4Connect},
		{"connect6", ebpf.AttachCGroupInet6Connect},
	}
}

// attach puts this process's programs in force at every hook.
func (d *Datapath) attach(Options) error {
	id, err := cgroupID(d.cgroup)
	if err != nil {
		return err
	}
	for _, h := range hooks() {
		if err := d.attachHook(h, id); err != nil {
			return fmt.Errorf("attach %s to cgroup %q: %w", h.name, d.cgroup, err)
		}
	}
	return nil
}

func (d *Datapath) attachHook(h hook, cgroup uint64) error {
	prog := d.coll.Programs[h.program()]
	l, err := d.takeOverLink(h, cgroup)
	if err != nil {
		return err
	}
	if l == nil {
		if l, err = d.newLink(h, prog); err != nil {
			return err
		}
	} else if err := l.Update(prog); err != nil {
		return errors.Join(fmt.Errorf("update link: %w", err), l.Close())
	}
	d.links[h.name] = l
	return replacePin(prog, filepath.Join(d.dir, programPrefix+h.name))
}

// takeOverLink opens the pinned link of a hook. It returns nil if there is none,
// if it is not one of this hook, or if it belongs to a cgroup that is not, or no
// longer, the configured one.
func (d *Datapath) takeOverLink(h hook, cgroup uint64) (link.Link, error) {
	l, err := link.LoadPinnedLink(d.linkPath(h), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		d.log.Warn("replace pin of something else", "key", h.name, "err", err)
		return nil, nil
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read link: %w", err), l.Close())
	}
	if c := info.Cgroup(); c == nil || c.CgroupId != cgroup || ebpf.AttachType(c.AttachType) != h.attach {
		d.log.Warn("replace link of another cgroup or hook", "key", h.name)
		return nil, l.Close()
	}
	return l, nil
}

// newLink attaches prog and pins the link. A link that was pinned there before
// goes away with its pin, after the new one is in force.
func (d *Datapath) newLink(h hook, prog *ebpf.Program) (link.Link, error) {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: d.cgroup, Attach: h.attach, Program: prog})
	if err != nil {
		return nil, err
	}
	if err := replacePin(l, d.linkPath(h)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	d.fresh = append(d.fresh, d.linkPath(h))
	return l, nil
}

func (d *Datapath) linkPath(h hook) string {
	return filepath.Join(d.dir, linkPrefix+h.name)
}

// detachFresh undoes the attachments of a Load that failed, so that a node does
// not stay half attached.
func (d *Datapath) detachFresh() error {
	var errs []error
	for _, path := range d.fresh {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

// findCgroup sets the cgroup directory to attach to.
func (d *Datapath) findCgroup(opts Options) error {
	path := opts.Cgroup
	if path == "" {
		found, err := FindCgroup2()
		if err != nil {
			return err
		}
		path = found
	}
	d.cgroup = path
	return checkCgroup2(path)
}

func checkCgroup2(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("use Cgroup %q: %w; name a directory of the cgroup2 hierarchy", path, err)
	}
	if int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("use Cgroup %q: not on a cgroup2 file system; `findmnt -t cgroup2` shows where it is mounted", path)
	}
	return nil
}

// cgroupID is the kernel's number of a cgroup: the inode of its directory.
func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("look at cgroup %q: %w", path, err)
	}
	return st.Ino, nil
}
