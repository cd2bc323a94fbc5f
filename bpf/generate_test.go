package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGeneratedFilesAreCurrent runs the go:generate line into another directory
// and compares bytes.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	regenerated(t, "generate.go", "clustermesh.bpf.c", "clustermesh_bpfel.go", "clustermesh_bpfel.o")
	regenerated(t, "sockets.go", "sockets.bpf.c", "sockets_bpfel.go", "sockets_bpfel.o")
}

// regenerated runs the go:generate line of a file and compares what it makes.
func regenerated(t *testing.T, from, source string, names ...string) {
	t.Helper()
	needTool(t, "clang-14")
	needTool(t, "llvm-strip-14")
	dir := t.TempDir()
	args := strings.Fields(generateLine(t, from))
	// The ident and the source are the first arguments that are no flags.
	args = append([]string{"run", args[2], "-output-dir", dir}, args[3:]...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	for _, name := range names {
		if !bytes.Equal(readFile(t, name), readFile(t, filepath.Join(dir, name))) {
			t.Errorf("%s is not what %s compiles to; run `go generate ./bpf`", name, source)
		}
	}
}

func needTool(t *testing.T, tool string) {
	t.Helper()
	_, err := exec.LookPath(tool)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is missing: run `apt-get install clang-14 llvm-14 libbpf-dev`", tool)
	default:
		t.Skipf("%s is missing: run `apt-get install clang-14 llvm-14 libbpf-dev`", tool)
	}
}

// generateLine is the command of a file's go:generate line, "go run ...".
func generateLine(t *testing.T, file string) string {
	t.Helper()
	_, line, found := strings.Cut(string(readFile(t, file)), "//go:generate ")
	if !found {
		t.Fatalf("%s has no go:generate line", file)
	}
	line, _, _ = strings.Cut(line, "\n")
	return line
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
