package check

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// promtool runs Prometheus' own tool; on CI it has to be there.
func promtool(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("promtool is not installed: it comes with the Debian package prometheus")
		}
		t.Skip("promtool is not installed")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestPromtool: Prometheus takes the rules, and its unit tests of them make
// every alert fire and clear.
func TestPromtool(t *testing.T) {
	promtool(t, "check", "rules", "../alerts/clustermesh.yaml")
	promtool(t, "test", "rules", "../alerts/clustermesh_test.yaml")
	tests := readFile(t, "../alerts/clustermesh_test.yaml")
	for where := range queries(t) {
		if name, alert := strings.CutPrefix(where, "alert "); alert && !strings.Contains(tests, `alertname="`+name+`"`) {
			t.Errorf("no unit test makes %s fire", name)
		}
	}
}
