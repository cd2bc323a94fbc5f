package e2e

import (
	"encoding/json"
	"os/exec"
	"testing"
)

// checkConformance: the operator's command finds nothing wrong with any cluster
// as a node reaches it, by the checks that Cilium's clients make.
func checkConformance(t *testing.T, w *world) {
	for _, n := range w.nodes() {
		out, err := exec.Command(binary("clustermesh"), "troubleshoot", "--clusters", n.agent.clusters, "-o", "json").Output()
		var findings []struct{ Cluster, Check, Outcome, Evidence, Remedy string }
		if jsonErr := json.Unmarshal(out, &findings); jsonErr != nil {
			t.Fatalf("troubleshoot: %v, %v in %s", err, jsonErr, out)
		}
		passed := 0
		for _, f := range findings {
			switch f.Outcome {
			case "pass":
				passed++
			case "fail":
				t.Errorf("%s as %s sees it: %s: %s; %s", f.Cluster, n.name, f.Check, f.Evidence, f.Remedy)
			}
		}
		if err != nil || passed == 0 {
			t.Errorf("troubleshoot on %s: %v, %d checks passed", n.name, err, passed)
		}
		t.Logf("%s: %d checks passed", n.name, passed)
	}
}
