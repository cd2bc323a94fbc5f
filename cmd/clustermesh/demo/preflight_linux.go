package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
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
		note(checkKernel())
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

func checkKernel() error {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	var errs []string
	if !slices.Contains(strings.Fields(string(data)), "bpf") {
		errs = append(errs, "bpf file system: the kernel lacks it (CONFIG_BPF_SYSCALL)")
	}
	if err := features.HaveProgramType(ebpf.CGroupSockAddr); err != nil {
		errs = append(errs, fmt.Sprintf("eBPF programs on cgroup sockets (CONFIG_CGROUP_BPF): %v", err))
	}
	if len(errs) == 0 {
		return nil
	}
	return errors.New(strings.Join(errs, "\n- "))
}
