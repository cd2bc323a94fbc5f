package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// binEnv names the directory of the product's programs. They are built when it
// is not set.
const binEnv = "CLUSTERMESH_E2E_BIN"

func binary(name string) string { return filepath.Join(os.Getenv(binEnv), name) }

// TestMain runs the tests inside namespaces of their own. On CI a machine that
// cannot run them is a failure.
func TestMain(m *testing.M) {
	if lab.Inside() {
		os.Exit(m.Run())
	}
	lacks := lab.Missing(nil, nil)
	switch {
	case len(lacks) == 0:
		code, err := isolated()
		if err != nil {
			fmt.Fprintln(os.Stderr, "interop tests:", err)
			code = 1
		}
		os.Exit(code)
	case os.Getenv("CI") == "true":
		fmt.Fprintln(os.Stderr, "the interop tests cannot run here; missing:", strings.Join(lacks, ", "))
		os.Exit(1)
	default:
		os.Exit(m.Run()) // the tests skip and say what is missing
	}
}

// isolated builds the product, outside because a build may need the network,
// and runs the tests with it.
func isolated() (int, error) {
	dir, remove, err := programs()
	if err != nil {
		return 1, err
	}
	defer remove()
	if err := os.Setenv(binEnv, dir); err != nil {
		return 1, err
	}
	return lab.Isolate()
}

// programs returns a directory with the product's programs.
func programs() (dir string, remove func(), err error) {
	if dir := os.Getenv(binEnv); dir != "" {
		dir, err := filepath.Abs(dir)
		return dir, func() {}, err
	}
	if dir, err = os.MkdirTemp("", "clustermesh-bin-"); err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) } // what is left is in the system's temporary directory
	if err = build(dir); err != nil {
		remove()
	}
	return dir, remove, err
}

// build builds with the flags of the Makefile, for the sake of the build cache.
func build(dir string) error {
	cmd := exec.Command("go", "build", "-C", filepath.Join("..", ".."), "-trimpath", "-buildvcs=false", "-ldflags=-s -w",
		"-o", dir+string(filepath.Separator), "./cmd/clustermesh-apiserver", "./cmd/clustermesh-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the product: %w\n%s", err, out)
	}
	return nil
}
