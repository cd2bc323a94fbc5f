package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// FindCgroup2 returns where the cgroup2 hierarchy is mounted. In a container that
// sees several mounts of it, that is the one that shows most of the node, and not
// the container's own part of the hierarchy.
func FindCgroup2() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2 mount: %w", err)
	}
	path := cgroup2Mount(string(text))
	if path == "" {
		return "", errors.New("find cgroup2 mount: none; run `mount -t cgroup2 none /sys/fs/cgroup/unified` or make the host's visible in the agent's mount namespace")
	}
	return path, nil
}

// cgroup2Mount picks the mount from the text of proc(5) mountinfo: "id parent
// major:minor root mountpoint options [optional...] - type source superoptions".
// The first of the widest mounts wins.
func cgroup2Mount(mountinfo string) string {
	path, widest := "", -1
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if width := cgroupWidth(fields[3]); width > widest {
			path, widest = unescapeMount(fields[4]), width
		}
	}
	return path
}

// cgroupWidth ranks the root of a mount, which cgroup_namespaces(7) writes
// relative to the reader's cgroup: "/.." is its parent, "/" itself and
// "/something" a part of it.
func cgroupWidth(root string) int {
	if root == "/" {
		return 1
	}
	return 2 * strings.Count(root, "/..")
}

// wholeNode says whether path is the root of the hierarchy, which unlike all
// other cgroups has no type.
func wholeNode(path string) bool {
	_, err := os.Stat(filepath.Join(path, "cgroup.type"))
	return errors.Is(err, os.ErrNotExist)
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
