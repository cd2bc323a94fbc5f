package check

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestRender renders every file of values and has Kubernetes' types decode what
// comes out, strictly.
func TestRender(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(values, "*.yaml"))
	must(t, err)
	if len(files) < 8 {
		t.Fatalf("only %d files of values", len(files))
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			text := join(mustRender(t, valuesOf(t, file)))
			if len(decode(t, text)) < 8 {
				t.Errorf("only few objects in\n%s", text)
			}
			compare(t, filepath.Join(golden, name+".yaml"), text)
		})
	}
}
