package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

type explanationView struct {
	Services []explainedService `json:"services"`
	Nodes    []presenceView     `json:"nodes"`
	Refused  []refusedView      `json:"refused"`
	Findings []string           `json:"findings"`
}

type explainedService struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Global    bool           `json:"global"`
	Affinity  string         `json:"affinity"`
	Frontends []decisionView `json:"frontends"`
	Clusters  []shareView    `json:"clusters"`
	Nearest   string         `json:"nearest"`
	Findings  []string       `json:"findings"`

	// Unmatched are backends that no frontend can use.
	Unmatched []judgedView `json:"unmatched"`
}

type decisionView struct {
	Frontend frontendView `json:"frontend"`
	PortName string       `json:"portName"`
	Backends []judgedView `json:"backends"`
}

// judgedView is a backend with every filter that it passed, the one that dropped
// it, if any, and what that means.
type judgedView struct {
	chosenView
	Passed    []string `json:"passed"`
	DroppedBy string   `json:"droppedBy"`
	Why       string   `json:"why"`
}

func newJudged(list []*api.Backend) []judgedView {
	out := []judgedView{}
	for _, b := range newChosen(list) {
		dropped, why := lb.DroppedBy(b.Reason)
		v := judgedView{chosenView: b, Passed: []string{}, DroppedBy: string(dropped), Why: why}
		for _, f := range lb.Filters() {
			if f == dropped {
				break
			}
			v.Passed = append(v.Passed, string(f))
		}
		out = append(out, v)
	}
	return out
}

type shareView struct {
	Cluster     string `json:"cluster"`
	Local       bool   `json:"local"`
	State       string `json:"state"`
	Says        bool   `json:"says"`
	Backends    uint32 `json:"backends"`
	Provisional uint32 `json:"provisional"`
	Held        uint32 `json:"held"`
	// Unshared is of the own cluster: the others do not get its backends.
	Unshared   bool    `json:"unshared"`
	Revision   int64   `json:"revision"` // of the cluster's store, 0 if not heard yet
	AgeSeconds float64 `json:"ageSeconds"`
}

type refusedView struct {
	Cluster   string   `json:"cluster"`
	Key       string   `json:"key"`
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Reason    string   `json:"reason"`
	Text      string   `json:"text"`
	Remedy    string   `json:"remedy"`
}

type releaseView struct {
	Cluster  string `json:"cluster"`
	Released uint32 `json:"released"`
}

func (v releaseView) table(w io.Writer) {
	fmt.Fprintf(w, "%s of cluster %s held no more\n", cli.Count(v.Released, "backend", ""), v.Cluster)
}

func newExplanation(r *api.ExplainResponse) explanationView {
	v := explanationView{Services: []explainedService{}, Nodes: []presenceView{}, Refused: []refusedView{}, Findings: append([]string{}, r.GetFindings()...)}
	for _, s := range r.GetServices() {
		v.Services = append(v.Services, newExplained(s))
	}
	for _, x := range r.GetRefused() {
		v.Refused = append(v.Refused, refusedView{
			Cluster: x.GetCluster(), Key: x.GetKey(), Namespace: x.GetNamespace(), Name: x.GetName(), Addresses: append([]string{}, x.GetAddresses()...),
			Reason: x.GetReason(), Text: x.GetText(), Remedy: x.GetRemedy(),
		})
	}
	return v
}

func newExplained(s *api.Explanation) explainedService {
	v := explainedService{
		Namespace: s.GetNamespace(), Name: s.GetName(), Global: s.GetGlobal(), Affinity: s.GetAffinity(), Nearest: s.GetNearest(),
		Frontends: []decisionView{}, Clusters: []shareView{}, Findings: append([]string{}, s.GetFindings()...), Unmatched: newJudged(s.GetUnmatched()),
	}
	for _, d := range s.GetFrontends() {
		v.Frontends = append(v.Frontends, decisionView{newFrontend(d.GetFrontend()), d.GetFrontend().GetPortName(), newJudged(d.GetBackends())})
	}
	for _, c := range s.GetClusters() {
		v.Clusters = append(v.Clusters, shareView{
			c.GetCluster(), c.GetLocal(), c.GetState(), c.GetSays(), c.GetBackends(), c.GetProvisional(), c.GetHeld(), c.GetUnshared(), c.GetRevision(), c.GetAgeSeconds(),
		})
	}
	return v
}

func (v explanationView) table(w io.Writer) {
	for _, s := range v.Services {
		s.table(w)
		fmt.Fprintln(w)
	}
	printPresence(w, v.Nodes)
	for _, line := range v.Findings {
		fmt.Fprintf(w, "! %s\n", line)
	}
	for _, r := range v.Refused {
		addresses := ""
		if len(r.Addresses) > 0 {
			addresses = " (" + strings.Join(r.Addresses, ", ") + ")"
		}
		fmt.Fprintf(w, "! refused (%s): %s of cluster %s: %s%s; remedy: %s\n", r.Reason, r.Key, r.Cluster, r.Text, addresses, r.Remedy)
	}
}

// heard is the revision and its age as two columns.
func (c shareView) heard() string {
	if c.Revision == 0 {
		return "-\t-"
	}
	return fmt.Sprintf("%d\t%s", c.Revision, time.Duration(c.AgeSeconds*float64(time.Second)).Round(time.Second))
}

func printJudged(w io.Writer, list []judgedView) {
	fmt.Fprintln(w, "  BACKEND\tCLUSTER\tSTATE\tUSED\tREASON\tTIER\tWEIGHT\tSHARE\tFILTER\tWHY")
	for _, b := range list {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", b.row(), cmp.Or(b.DroppedBy, "all passed"), b.Why)
	}
}

func (s explainedService) table(w io.Writer) {
	kind := "global service"
	if !s.Global {
		kind = "no global service of this cluster"
	}
	fmt.Fprintf(w, "%s/%s  %s, affinity %s\n", s.Namespace, s.Name, kind, s.Affinity)
	printNearest(w, s.Nearest)
	fmt.Fprintln(w, "  CLUSTER\tSTATE\tHAS IT\tSHARED\tBACKENDS\tPROVISIONAL\tHELD\tREVISION\tAGE")
	for _, c := range s.Clusters {
		name, has := c.Cluster, "no"
		if c.Local {
			name += " (own)"
		}
		switch {
		case c.Says:
			has = "yes"
		case c.Provisional > 0:
			has = "?" // it has not said yet
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", name, c.State, has, yes(c.Says && !c.Unshared), c.Backends, c.Provisional, c.Held, c.heard())
	}
	for _, d := range s.Frontends {
		fmt.Fprintf(w, "\n  frontend %s %s\n", d.Frontend, d.PortName)
		printJudged(w, d.Backends)
	}
	if len(s.Unmatched) > 0 {
		fmt.Fprint(w, "\n  no frontend\n")
		printJudged(w, s.Unmatched)
	}
	for _, line := range s.Findings {
		fmt.Fprintf(w, "  ! %s\n", line)
	}
}
