package main

import (
	"fmt"

	"github.com/clustermesh/clustermesh/kvstore/conformance"
)

// findingView is one finding in JSON; every member is always there.
type findingView struct {
	Cluster  string `json:"cluster"`
	Endpoint string `json:"endpoint"`
	File     string `json:"file"`
	Group    string `json:"group"`
	Check    string `json:"check"`
	Title    string `json:"title"`
	Outcome  string `json:"outcome"`
	Evidence string `json:"evidence"`
	Effect   string `json:"effect"`
	Remedy   string `json:"remedy"`
}

// findingPrinter shows findings as they come, or all of them as JSON at the end.
type findingPrinter struct {
	app     *app
	subject subject
	views   []findingView
	counts  map[conformance.Outcome]int // of the current subject
	failed  int
}

func (p *findingPrinter) json() bool { return p.app.format == formatJSON }

func (p *findingPrinter) begin(s subject) {
	p.subject, p.counts = s, map[conformance.Outcome]int{}
	if !p.json() {
		fmt.Fprintf(p.app.stdout, "cluster %s %s\n", s.target.Cluster, s.target.Endpoint)
	}
}

func (p *findingPrinter) add(r conformance.Result) {
	p.counts[r.Outcome]++
	v := findingView{
		Cluster: p.subject.target.Cluster, Endpoint: p.subject.target.Endpoint, File: p.subject.file,
		Group: r.Check.Group, Check: r.Check.ID, Title: r.Check.Title, Outcome: string(r.Outcome), Evidence: r.Evidence, Remedy: r.Remedy,
	}
	if r.Outcome == conformance.Fail {
		p.failed++
		v.Effect = r.Check.Why
	}
	p.views = append(p.views, v)
	if !p.json() {
		fmt.Fprintln(p.app.stdout, v.line())
	}
}

func (v findingView) line() string {
	line := fmt.Sprintf("%-4s  %-22s  %s", v.Outcome, v.Check, v.Evidence)
	if v.Remedy != "" {
		line += "; remedy: " + v.Remedy
	}
	return line
}

func (p *findingPrinter) end() {
	if !p.json() {
		fmt.Fprintf(p.app.stdout, "%d passed, %d failed, %d skipped\n\n", p.counts[conformance.Pass], p.counts[conformance.Fail], p.counts[conformance.Skip])
	}
}

func (p *findingPrinter) flush() error {
	if !p.json() {
		return nil
	}
	return p.app.print(p.views, table{})
}
