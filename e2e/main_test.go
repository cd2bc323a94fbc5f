package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/disk"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// binDir is where the shipped binaries and the Kubernetes control plane are.
func binDir() string {
	if dir := os.Getenv("CLUSTERMESH_E2E_BIN"); dir != "" {
		return dir
	}
	return filepath.Join("..", "bin")
}

func binary(name string) string {
	path, err := filepath.Abs(filepath.Join(binDir(), name))
	if err != nil {
		return name
	}
	return path
}

func missing() []string {
	tools := []string{"nft", "prometheus", "ip", "curl", "unshare", "nsenter", "findmnt", "go", "gcc"}
	var files []string
	for _, name := range []string{"kube", "clustermesh-apiserver", "clustermesh-agent", "clustermesh"} {
		files = append(files, binary(name))
	}
	return lab.Missing(tools, files)
}

// TestMain runs the tests inside namespaces of their own. On CI a machine that
// cannot run them is a failure.
func TestMain(m *testing.M) {
	if pod.IsChild() {
		pod.Main()
		return
	}
	if disk.IsChild() {
		disk.Main()
	}
	if lab.Inside() {
		flag.Parse()
		// What runs side by side waits for events, not for the processor.
		if err := flag.Set("test.parallel", "16"); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	lacks := missing()
	switch {
	case len(lacks) == 0:
		os.Exit(isolated())
	case os.Getenv("CI") == "true":
		fmt.Fprintln(os.Stderr, "the end-to-end tests cannot run here; missing:", strings.Join(lacks, ", "))
		os.Exit(1)
	default:
		os.Exit(m.Run()) // the tests skip and say what is missing
	}
}

func isolated() int {
	code, err := lab.Isolate()
	if err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
		return 1
	}
	return code
}
