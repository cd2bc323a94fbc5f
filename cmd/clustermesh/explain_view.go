package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/clustermesh/clustermesh/agent/api"
)

type explanationView struct {
	Services []explainedService `json:"services"`
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
}

type decisionView struct {
	Frontend frontendView `json:"frontend"`
	PortName string       `json:"portName"`
	Backends []chosenView `json:"backends"`
}

type shareView struct {
	Cluster     string `json:"cluster"`
	Local       bool   `json:"local"`
	State       string `json:"state"`
	Says        bool   `json:"says"`
	Backends    uint32 `json:"backends"`
	Provisional uint32 `json:"provisional"`
	Held        uint32 `json:"held"`
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
	fmt.Fprintf(w, "%d backends of cluster %s are held no more\n", v.Released, v.Cluster)
}

func newExplanation(r *api.ExplainResponse) explanationView {
	v := explanationView{Services: []explainedService{}, Refused: []refusedView{}, Findings: append([]string{}, r.GetFindings()...)}
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
		Frontends: []decisionView{}, Clusters: []shareView{}, Findings: append([]string{}, s.GetFindings()...),
	}
	for _, d := range s.GetFrontends() {
		v.Frontends = append(v.Frontends, decisionView{newFrontend(d.GetFrontend()), d.GetFrontend().GetPortName(), newChosen(d.GetBackends())})
	}
	for _, c := range s.GetClusters() {
		v.Clusters = append(v.Clusters, shareView{c.GetCluster(), c.GetLocal(), c.GetState(), c.GetSays(), c.GetBackends(), c.GetProvisional(), c.GetHeld()})
	}
	return v
}

func (v explanationView) table(w io.Writer) {
	for _, s := range v.Services {
		s.table(w)
		fmt.Fprintln(w)
	}
	for _, line := range v.Findings {
		fmt.Fprintf(w, "! %s\n", line)
	}
	for _, r := range v.Refused {
		fmt.Fprintf(w, "! refused (%s): %s of cluster %s: %s\n", r.Reason, r.Key, r.Cluster, r.Text)
		if len(r.Addresses) > 0 {
			fmt.Fprintf(w, "    addresses: %s\n", strings.Join(r.Addresses, ", "))
		}
		fmt.Fprintf(w, "    remedy: %s\n", r.Remedy)
	}
}

func (s explainedService) table(w io.Writer) {
	kind := "global service"
	if !s.Global {
		kind = "no global service of this cluster"
	}
	fmt.Fprintf(w, "%s/%s  %s, affinity %s\n", s.Namespace, s.Name, kind, s.Affinity)
	printNearest(w, s.Nearest)
	fmt.Fprintln(w, "  CLUSTER\tSTATE\tHAS IT\tBACKENDS\tPROVISIONAL\tHELD")
	for _, c := range s.Clusters {
		name, has := c.Cluster, "no"
		if c.Local {
			name += " (own)"
		}
		if c.Says {
			has = "yes"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%d\t%d\t%d\n", name, c.State, has, c.Backends, c.Provisional, c.Held)
	}
	for _, d := range s.Frontends {
		fmt.Fprintf(w, "\n  frontend %s %s\n", d.Frontend, d.PortName)
		printChosen(w, d.Backends)
	}
	for _, line := range s.Findings {
		fmt.Fprintf(w, "  ! %s\n", line)
	}
}
