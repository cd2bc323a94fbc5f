package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Pin is one entry of the pin directory. Kind is "link", "program" or "map".
type Pin struct {
	Name string
	Kind string
}

// Pins lists what is pinned, links first, each kind sorted by name. A directory
// that does not exist holds nothing.
func Pins(opts Options) ([]Pin, error) {
	entries, err := os.ReadDir(opts.PinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var pins []Pin
	for _, kind := range []string{"link", "program", "map"} {
		for _, e := range entries {
			if pinKind(e.Name()) == kind {
				pins = append(pins, Pin{Name: e.Name(), Kind: kind})
			}
		}
	}
	return pins, nil
}

// pinKind tells our pins from anything else in the directory, for which it
// returns "".
func pinKind(name string) string {
	switch {
	case strings.HasPrefix(name, linkPrefix):
		return "link"
	case strings.HasPrefix(name, programPrefix):
		return "program"
	case strings.HasPrefix(name, mapPrefix):
		return "map"
	}
	return ""
}

// Cleanup ends load balancing on this node: it detaches and removes every link,
// then the programs and maps, then the pin directory. How much it removed it logs
// at info, each pin at debug. New connections then go to the address that the client names; existing
// ones stay. Nothing there is no error. It fails with ErrBusy while an agent
// runs. A bpffs stays mounted.
func Cleanup(opts Options) error {
	if err := opts.validatePinDir(); err != nil {
		return err
	}
	opts = opts.withDefaults()
	lock, err := lockPinDir(opts.PinDir)
	if errors.Is(err, fs.ErrNotExist) {
		opts.Log.Info("nothing is pinned here", "key", opts.PinDir)
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(removePins(opts), unlock(lock))
}

func removePins(opts Options) error {
	removed := 0
	defer func() { opts.Log.Info("removed links, programs and maps", "key", opts.PinDir, "n", removed) }()
	pins, err := Pins(opts)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if err := removePin(opts.PinDir, p); err != nil {
			return fmt.Errorf("remove pin %s: %w", p.Name, err)
		}
		removed++
		opts.Log.Debug("removed pin", "op", p.Kind, "key", p.Name)
	}
	if err := os.Remove(opts.PinDir); err != nil {
		return fmt.Errorf("remove pin directory, which may hold what is not ours: %w", err)
	}
	return nil
}

func removePin(dir string, p Pin) error {
	path := filepath.Join(dir, p.Name)
	if p.Kind == "link" {
		if err := detach(path); err != nil {
			return err
		}
	}
	if index, side, ok := readDevicePin("tc", p.Name); ok {
		if err := deleteFilter(index, side); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

// detach takes the program out of force now, whoever else holds the link.
func detach(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	err = l.Detach()
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = nil // before Linux 5.9: removing the last reference detaches
	}
	return errors.Join(err, l.Close())
}
