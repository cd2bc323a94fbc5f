package bpf

import (
	"errors"
	"path/filepath"

	"github.com/cilium/ebpf/link"
)

// pinHeld pins a link again whose pin somebody removed, and returns another
// descriptor of it, or nil if this process does not have it: the kernel refuses a
// second link of the same program on the same device.
func (p *Packet) pinHeld(path string) (link.Link, error) {
	own := p.links[filepath.Base(path)]
	if own == nil {
		return nil, nil
	}
	l, err := cloneLink(own)
	if err != nil {
		return nil, err
	}
	if err := replacePin(l, path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// inForce says whether a pinned link is still attached to its device.
func (p *Packet) inForce(pin string, index int) bool {
	l, err := link.LoadPinnedLink(filepath.Join(p.dir, pin), nil)
	if err != nil {
		return false
	}
	on, err := deviceOf(l)
	return errors.Join(err, l.Close()) == nil && on == index
}
