package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Object is a kernel object by kind ("map", "program" or "link") and id.
type Object struct {
	Kind string
	ID   uint32
}

// Pinned lists the objects that are pinned in dir.
func Pinned(dir string) ([]Object, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []Object
	for _, e := range entries {
		o, err := identify(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("identify pin %s: %w", e.Name(), err)
		}
		all = append(all, o)
	}
	return all, nil
}

func identify(path string) (Object, error) {
	if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return Object{}, err
		}
		id, _ := info.ID()
		return Object{"map", uint32(id)}, nil
	}
	if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer p.Close()
		info, err := p.Info()
		if err != nil {
			return Object{}, err
		}
		id, _ := info.ID()
		return Object{"program", uint32(id)}, nil
	}
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return Object{}, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return Object{}, err
	}
	return Object{"link", uint32(info.ID)}, nil
}

// Existing returns those of the objects that the kernel still has.
func Existing(objects []Object) []Object {
	var left []Object
	for _, o := range objects {
		if !errors.Is(o.open(), fs.ErrNotExist) {
			left = append(left, o)
		}
	}
	return left
}

func (o Object) open() error {
	switch o.Kind {
	case "map":
		m, err := ebpf.NewMapFromID(ebpf.MapID(o.ID))
		if err == nil {
			return m.Close()
		}
		return err
	case "program":
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(o.ID))
		if err == nil {
			return p.Close()
		}
		return err
	}
	l, err := link.NewFromID(link.ID(o.ID))
	if err == nil {
		return l.Close()
	}
	return err
}
