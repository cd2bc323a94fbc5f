package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
)

// machine is what the demo found on this machine.
type machine struct {
	apiserver, agent string // executables
	cgroups          string // mount point of cgroup2
}

// preflight finds everything the demo needs, or returns a MissingError with
// everything that is missing.
func preflight(cfg Config) (machine, error) {
	var m machine
	var missing MissingError
	note := func(err error) {
		if err != nil {
			missing = append(missing, err.Error())
		}
	}
	var err error
	m.apiserver, err = cfg.find("clustermesh-apiserver")
	note(err)
	m.agent, err = cfg.find("clustermesh-agent")
	note(err)
	m.cgroups, err = cgroupRoot()
	note(err)
	if os.Geteuid() != 0 {
		note(errors.New("root: namespaces, cgroups and eBPF programs need it; run it with sudo"))
	} else {
		for _, err := range tryOut(m.cgroups) {
			note(err)
		}
	}
	if len(missing) > 0 {
		return m, missing
	}
	return m, nil
}

// find looks for a program of the product.
func (c Config) find(name string) (string, error) {
	if c.BinDir != "" {
		return c.findIn(name, c.BinDir)
	}
	if path, err := c.findIn(name, filepath.Dir(c.Self)); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("program %s: neither beside %s nor on PATH; give its directory with --bin-dir", name, c.Self)
	}
	return filepath.Abs(path)
}

func (c Config) findIn(name, dir string) (string, error) {
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	if _, err := exec.LookPath(path); err != nil {
		return "", fmt.Errorf("program %s: %w", name, err)
	}
	return path, nil
}

// tryOut does once, in a namespace that is gone afterwards, everything that
// needs a right or a part of the kernel. Being root is not enough in a
// container.
func tryOut(cgroups string) []error {
	var errs []error
	if err := features.HaveProgramType(ebpf.CGroupSockAddr); err != nil {
		errs = append(errs, fmt.Errorf("eBPF programs on cgroup sockets (CONFIG_CGROUP_BPF, CAP_BPF): %w", err))
	}
	if cgroups != "" {
		errs = append(errs, tryCgroup(cgroups))
	}
	trial, err := newPlace("trial")
	if err != nil {
		return append(errs, fmt.Errorf("namespaces (CONFIG_NET_NS, CAP_SYS_ADMIN): %w", err))
	}
	defer trial.close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := trial.link.LinkAdd(bridge); err != nil {
		errs = append(errs, fmt.Errorf("bridges (CONFIG_BRIDGE): %w", err))
	}
	if err := trial.link.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
		errs = append(errs, fmt.Errorf("veth pairs (CONFIG_VETH): %w", err))
	}
	if err := trial.mountBPF(os.TempDir()); err != nil {
		errs = append(errs, fmt.Errorf("bpf file system (CONFIG_BPF_SYSCALL): %w", err))
	}
	return errs
}

func tryCgroup(root string) error {
	g, err := newCgroup(filepath.Join(root, cgroupPrefix+"trial-"+strconv.Itoa(os.Getpid())))
	if err != nil {
		return fmt.Errorf("a writable cgroup2 file system: %w", err)
	}
	return g.remove()
}
