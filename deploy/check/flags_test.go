package check

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// nonsense is a value that every command refuses, so that none of them starts.
const nonsense = "--log-level=nonsense"

// build builds the product's commands and returns their directory.
func build(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(t.TempDir())
	must(t, err)
	c := exec.Command("go", "build", "-o", dir, "./cmd/clustermesh-apiserver", "./cmd/clustermesh-agent", "./cmd/clustermesh")
	c.Dir, c.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the commands: %v\n%s", err, out)
	}
	return dir
}

// complaints runs a command with a value that it refuses and returns what it
// finds wrong besides.
func complaints(t *testing.T, program string, env []string, args ...string) []string {
	t.Helper()
	c := exec.Command(program, append(args, nonsense)...)
	c.Env = env
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), `"nonsense"`) {
		t.Fatalf("%s %s ended with %v and not as one that is used wrongly:\n%s", program, args, err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return slices.DeleteFunc(lines[1:len(lines)-1], func(l string) bool { return strings.Contains(l, `"nonsense"`) })
}

// requireTaken demands that a command takes a command line but for expected
// complaints.
func requireTaken(t *testing.T, program string, env []string, args []string, expected ...string) {
	t.Helper()
	got := complaints(t, program, env, args...)
	got = slices.DeleteFunc(got, func(l string) bool {
		return slices.ContainsFunc(expected, func(e string) bool { return strings.Contains(l, e) })
	})
	if len(got) > 0 {
		t.Errorf("%s %s\n%s", program, strings.Join(args, " "), strings.Join(got, "\n"))
	}
}

// environment resolves a container's variables as the kubelet does.
func environment(t *testing.T, all []runtime.Object, c corev1.Container) []string {
	t.Helper()
	var out []string
	for _, e := range c.Env {
		value := e.Value
		switch from := e.ValueFrom; {
		case from == nil:
		case from.FieldRef != nil && from.FieldRef.FieldPath == "spec.nodeName":
			value = "node-1"
		case from.ConfigMapKeyRef != nil:
			settings := only[*corev1.ConfigMap](t, all, from.ConfigMapKeyRef.Name)
			var found bool
			if value, found = settings.Data[from.ConfigMapKeyRef.Key]; !found {
				t.Errorf("%s has no %s", settings.Name, from.ConfigMapKeyRef.Key)
			}
		default:
			t.Errorf("%s comes from where this test does not look", e.Name)
		}
		out = append(out, e.Name+"="+value)
	}
	return out
}

// programOf is the command that a container's image is named after.
func programOf(c corev1.Container) string {
	name, _, _ := strings.Cut(filepath.Base(c.Image), "@")
	name, _, _ = strings.Cut(name, ":")
	return name
}

// TestPrograms builds the commands and checks what is installed against them.
func TestPrograms(t *testing.T) {
	bin := build(t)
	t.Run("command_lines", func(t *testing.T) { checkCommandLines(t, bin) })
	t.Run("units", func(t *testing.T) { checkUnits(t, bin) })
	t.Run("guide", func(t *testing.T) { checkGuide(t, bin) })
	t.Run("documents", func(t *testing.T) { checkDocuments(t, bin) })
	t.Run("static", func(t *testing.T) { checkStatic(t, bin) })
}

// checkCommandLines has the commands judge every rendered command line with its
// environment: each flag and each value.
func checkCommandLines(t *testing.T, bin string) {
	files, err := filepath.Glob(filepath.Join(values, "*.yaml"))
	must(t, err)
	judged := 0
	for _, file := range files {
		all := objects(t, strings.TrimSuffix(filepath.Base(file), ".yaml"))
		for _, pod := range pods(t, all) {
			for _, c := range append(pod.InitContainers, pod.Containers...) {
				// Only in a pod it has a source of objects without a flag.
				requireTaken(t, filepath.Join(bin, programOf(c)), environment(t, all, c), c.Args, `--kubeconfig "": there is no source`)
				judged++
			}
		}
	}
	if judged < 2*len(files) {
		t.Errorf("only %d command lines were judged", judged)
	}
	got := complaints(t, filepath.Join(bin, "clustermesh-agent"), nil, "--clusters=x", "--cluster-id=700")
	if len(got) < 3 {
		t.Errorf("the judge misses mistakes: %q", got)
	}
}
