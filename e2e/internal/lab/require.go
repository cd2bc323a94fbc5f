package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Missing lists what this machine lacks for the tests, each with the remedy.
// tools are programs that must be on the path, files must exist.
func Missing(tools, files []string) []string {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root (run as root: namespaces and eBPF need it)")
	}
	if _, err := CgroupMount(); err != nil {
		missing = append(missing, "cgroup v2 (mount it: "+err.Error()+")")
	}
	if text, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(text), "\tbpf\n") {
		missing = append(missing, "bpffs (a kernel with CONFIG_BPF_SYSCALL)")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, fmt.Sprintf("%s (install it)", tool))
		}
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, fmt.Sprintf("%s (make e2e builds it)", file))
		}
	}
	return missing
}
