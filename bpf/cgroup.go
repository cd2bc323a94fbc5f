package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// FindCgroup2 returns where the cgroup2 hierarchy is mounted: the mount that
// shows its root if there is one, else the first.
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
func cgroup2Mount(mountinfo string) string {
	first := ""
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if fields[3] == "/" {
			return unescapeMount(fields[4])
		}
		if first == "" {
			first = unescapeMount(fields[4])
		}
	}
	return first
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
