package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Held lists the objects that a process has open.
func Held(pid int) ([]Object, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return nil, err
	}
	kinds := map[string]string{"map_id": "map", "prog_id": "program", "link_id": "link"}
	var all []Object
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		for lines := bufio.NewScanner(strings.NewReader(string(text))); lines.Scan(); {
			key, value, _ := strings.Cut(lines.Text(), ":")
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if kind := kinds[key]; kind != "" && err == nil {
				all = append(all, Object{kind, uint32(id)})
			}
		}
	}
	return all, nil
}

var (
	cgroupTypes = []ebpf.AttachType{
		ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInetSockCreate, ebpf.AttachCgroupInetSockRelease,
		ebpf.AttachCGroupSockOps, ebpf.AttachCGroupDevice, ebpf.AttachCGroupSysctl, ebpf.AttachCGroupGetsockopt, ebpf.AttachCGroupSetsockopt,
		ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
		ebpf.AttachCgroupInet4GetSockname, ebpf.AttachCgroupInet6GetSockname,
	}
	deviceTypes = []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress}
)

// AtCgroup lists what is attached to a cgroup, at every place there is, as
// "place program".
func AtCgroup(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return attached(int(f.Fd()), cgroupTypes)
}

// AtDevice lists what is attached at TCX to a device of the thread's network
// namespace.
func AtDevice(index int) ([]string, error) { return attached(index, deviceTypes) }

func attached(target int, types []ebpf.AttachType) ([]string, error) {
	var all []string
	for _, at := range types {
		found, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: at})
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
			continue // a place that this kernel does not have
		}
		if err != nil {
			return nil, fmt.Errorf("query %s: %w", at, err)
		}
		for _, p := range found.Programs {
			all = append(all, fmt.Sprintf("%s %d", at, p.ID))
		}
	}
	return all, nil
}
