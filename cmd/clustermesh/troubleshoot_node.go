package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// nodeFlags say which node is this one.
type nodeFlags struct {
	on            bool
	socket        *string
	cgroup, bpffs string
	stateDir      string
}

func (f *nodeFlags) add(c *cobra.Command) {
	f.addPlaces(c)
	c.Flags().BoolVar(&f.on, "node", false, "check this node as well: its agent, its kernel, and what else balances services on it")
}

// addPlaces adds the flags that say where the agent's things are.
func (f *nodeFlags) addPlaces(c *cobra.Command) {
	f.socket = socketFlag(c)
	c.Flags().StringVar(&f.cgroup, "cgroup", "", "the agent's --cgroup")
	c.Flags().StringVar(&f.stateDir, "state-dir", "", "the agent's --state-dir, to see that its disk has room")
	c.Flags().StringVar(&f.bpffs, "bpffs", "/sys/fs/bpf", "the agent's --bpffs")
}

// check looks at this node and returns the id of its cluster, 0 if that is not
// to be learnt.
func (f *nodeFlags) check(ctx context.Context, p *findingPrinter) uint32 {
	id := f.checkAgent(ctx, p)
	found, err := kernelFindings(f.cgroup, f.bpffs)
	if err != nil {
		p.add(findingView{Group: "kernel", Check: "kernel", Title: "the kernel has what the agent needs", Outcome: "skip", Evidence: err.Error()})
	}
	for _, v := range found {
		p.add(v)
	}
	if f.stateDir != "" {
		p.add(diskFinding("--state-dir", f.stateDir))
	}
	return id
}

func (f *nodeFlags) checkAgent(ctx context.Context, p *findingPrinter) uint32 {
	r, err := askStatus(ctx, *f.socket)
	answers := findingView{Group: "agent", Check: "agent-answers", Title: "the agent of this node answers", Outcome: outcomePass, Evidence: *f.socket}
	if err != nil {
		answers.Outcome, answers.Cause, answers.Evidence = outcomeFail, "agent down: nothing answers at its socket", err.Error()
		answers.Effect = "what is in the maps goes on being used and is not brought up to date"
		answers.Remedy = "start clustermesh-agent on this node and read its log (journalctl -u clustermesh-agent, kubectl logs); name its socket with --api-socket, and be root"
		p.add(answers)
		return 0
	}
	p.add(answers)
	for _, v := range statusFindings(newStatus(r)) {
		p.add(v)
	}
	return r.GetClusterId()
}

// askStatus asks the agent once.
func askStatus(ctx context.Context, socket string) (*api.StatusResponse, error) {
	conn, agent, err := dialAgent(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	r, err := agent.Status(ctx, &api.StatusRequest{})
	return r, shortAgentError(err)
}

// statusFindings judges what an agent says of itself.
func statusFindings(v statusView) []findingView {
	ready := findingView{Group: "agent", Check: "agent-ready", Title: "the maps reflect the own cluster", Outcome: outcomePass, Evidence: "node " + v.Node + " of cluster " + v.Cluster}
	if !v.Ready {
		ready.Outcome, ready.Cause = outcomeFail, "the node is not ready: its own cluster was never heard"
		ready.Remedy = "see the finding of cluster " + v.Cluster
	}
	found := append([]findingView{ready}, mapFindings(v.Datapath)...)
	for _, c := range v.Clusters {
		found = append(found, clusterFindings(c)...)
	}
	for _, line := range v.Problems {
		found = append(found, problemFinding(line, "see the agent's log"))
	}
	return found
}

// problemFinding takes a sentence of the agent's apart: what is to be done comes
// last, after a semicolon.
func problemFinding(line, fallback string) findingView {
	cause, remedy := splitRemedy(line, fallback)
	return findingView{Group: "agent", Check: "agent-problem", Title: "the agent reports no problem", Outcome: outcomeFail, Cause: cause, Remedy: remedy}
}

// splitRemedy returns fallback for a sentence without a remedy.
func splitRemedy(line, fallback string) (cause, remedy string) {
	if i := strings.LastIndex(line, "; "); i >= 0 {
		return line[:i], line[i+2:]
	}
	return line, fallback
}

func clusterFindings(c clusterView) []findingView {
	v := findingView{Cluster: c.Name, Group: "clusters", Check: "cluster-synced", Title: "all that the cluster says is known", Outcome: outcomePass, Evidence: c.Name + " is " + c.State}
	if c.State != "synced" {
		v.Outcome, v.Cause = outcomeFail, fmt.Sprintf("cluster %s is %s for %.0f s", c.Name, c.State, c.StateSeconds)
		v.Effect = "what was known of it stays in use and is not brought up to date"
		v.Evidence, v.Remedy = splitRemedy(c.LastError, cmp.Or(c.Remedy, "find the point that fails with: clustermesh troubleshoot CLUSTERS/"+c.Name+" (the agent's --clusters directory)"))
	}
	found := []findingView{v}
	for _, r := range c.Rejections {
		found = append(found, findingView{
			Cluster: c.Name, Group: "clusters", Check: "cluster-refused-" + r.Reason, Title: "nothing of the cluster is refused", Outcome: outcomeNote,
			Cause: fmt.Sprintf("refused of %s: %s (%s)", c.Name, cli.Count(r.Count, "entry", ""), r.Reason), Evidence: r.Example,
			Remedy: "see which services it concerns, and what to do, with: clustermesh explain NAMESPACE/NAME",
		})
	}
	return found
}

// nearlyFull is the part of the maps beyond which it is time to enlarge them.
const nearlyFull = 0.9

func mapFindings(d datapathView) []findingView {
	found := []findingView{
		mapFinding("map-frontends", "frontends", "--max-frontends", d.Frontends, d.FrontendsCapacity),
		mapFinding("map-records", "backend records", "--max-records", d.Records, d.RecordsCapacity),
	}
	if d.LastError != "" {
		cause, remedy := splitRemedy(d.LastError, "see clustermesh status")
		found = append(found, findingView{Group: "maps", Check: "map-writes", Title: "every service is in the maps", Outcome: outcomeFail, Cause: "a service does not fit into the maps", Evidence: cause, Remedy: remedy})
	}
	return found
}

func mapFinding(check, what, flag string, used, capacity uint32) findingView {
	v := findingView{Group: "maps", Check: check, Title: "there is room for more " + what, Outcome: outcomePass, Evidence: fmt.Sprintf("%d of %d %s", used, capacity, what)}
	remedy := "enlarge the map with the agent's " + flag + ", which takes effect after clustermesh-agent cleanup, or make fewer services global"
	switch {
	case capacity > 0 && used >= capacity:
		v.Outcome, v.Cause, v.Remedy = outcomeFail, "map full: no room for more "+what, remedy
	case float64(used) > nearlyFull*float64(capacity):
		v.Outcome, v.Cause, v.Remedy = outcomeNote, "the map is nearly full", remedy
	}
	return v
}

// errNotHere is why the kernel is not looked at.
var errNotHere = errors.New("eBPF is Linux's; run this on the node")
