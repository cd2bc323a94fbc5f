package main

import (
	"strings"

	"github.com/clustermesh/clustermesh/agent"
	"github.com/clustermesh/clustermesh/bpf"
)

// kernelFindings is what `clustermesh-agent check` says of this node.
func kernelFindings(cgroup, bpffs string) ([]findingView, error) {
	var found []findingView
	for _, f := range agent.Check(agent.Config{Cgroup: cgroup, BPFFS: bpffs}) {
		found = append(found, kernelFinding(f))
	}
	return found, nil
}

func kernelFinding(f bpf.Finding) findingView {
	v := findingView{Group: "kernel", Check: strings.ReplaceAll(f.Check, " ", "-"), Title: f.Check + " is as the agent needs it", Outcome: outcomePass, Evidence: f.Detail}
	switch {
	case f.OK:
		return v
	case f.Fatal:
		v.Outcome, v.Cause, v.Effect = outcomeFail, f.Check+" is missing", "the agent does not start"
	default:
		v.Outcome, v.Cause = outcomeNote, f.Detail
	}
	v.Remedy = f.Remedy
	return v
}
