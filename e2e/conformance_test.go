package e2e

import (
	"encoding/json"
	"os/exec"
	"testing"
)

// checkConformance: the operator's command finds nothing wrong with any cluster
// as a node reaches it, by the checks that Cilium's clients make, nor with the
// node's agent, its maps and its kernel.
func checkConformance(t *testing.T, w *world) {
	for _, n := range w.nodes() {
		out, err := exec.Command(binary("clustermesh"), "troubleshoot", "--clusters", n.agent.clusters,
			"--node", "--api-socket", n.agent.socket, "--bpffs", n.agent.bpffs, "--cgroup", n.lab.Cgroup, "-o", "json").Output()
		var findings []struct{ Cluster, Group, Check, Outcome, Cause, Evidence, Remedy string }
		if jsonErr := json.Unmarshal(out, &findings); jsonErr != nil {
			t.Fatalf("troubleshoot: %v, %v in %s", err, jsonErr, out)
		}
		passed, groups := 0, map[string]int{}
		for _, f := range findings {
			switch f.Outcome {
			case "pass":
				passed++
				groups[f.Group]++
			case "fail":
				t.Errorf("%s as %s sees it: %s: %s: %s; %s", f.Cluster, n.name, f.Check, f.Cause, f.Evidence, f.Remedy)
			}
		}
		if err != nil || groups["kernel"] < 10 || groups["maps"] < 2 || groups["agent"] < 2 || groups["tls"] < 2 || groups["mesh"] < 2 {
			t.Errorf("troubleshoot on %s: %v, checks passed by group: %v", n.name, err, groups)
		}
		t.Logf("%s: %d checks passed", n.name, passed)
	}
}
