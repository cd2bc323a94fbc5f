package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/kvstore/conformance"
)

// findingView is one finding in JSON; every member is always there. Outcome is
// pass, fail, skip, or note for what costs something and is no fault. Cause and
// Remedy are of failures and notes.
type findingView struct {
	Cluster  string `json:"cluster"`
	Endpoint string `json:"endpoint"`
	File     string `json:"file"`
	Group    string `json:"group"`
	Check    string `json:"check"`
	Title    string `json:"title"`
	Outcome  string `json:"outcome"`
	Cause    string `json:"cause"`
	Evidence string `json:"evidence"`
	Effect   string `json:"effect"`
	Remedy   string `json:"remedy"`
}

// The outcomes of findings.
const (
	outcomePass = string(conformance.Pass)
	outcomeFail = string(conformance.Fail)
	outcomeNote = "note"
)

func resultView(r conformance.Result) findingView {
	v := findingView{
		Group: r.Check.Group, Check: r.Check.ID, Title: r.Check.Title, Outcome: string(r.Outcome),
		Cause: r.Cause, Evidence: r.Evidence, Remedy: r.Remedy,
	}
	if r.Outcome == conformance.Fail {
		v.Effect = r.Check.Why
	}
	return v
}

// findingPrinter shows findings as they come, or all of them for machines at the
// end.
type findingPrinter struct {
	app     *app
	waiting *progress
	subject subject
	views   []findingView
	counts  map[string]int // of outcomes of the current subject
	failed  int
}

func (a *app) findingPrinter() *findingPrinter {
	return &findingPrinter{app: a, waiting: a.progress("looking around"), views: []findingView{}}
}

// section shows what look finds of a subject.
func (p *findingPrinter) section(s subject, look func()) {
	p.subject, p.counts = s, map[string]int{}
	p.waiting.say("checking " + s.heading())
	p.text(s.heading())
	look()
	line := fmt.Sprintf("%d passed, %d failed, %d skipped", p.counts[outcomePass], p.counts[outcomeFail], p.counts[string(conformance.Skip)])
	if n := p.counts[outcomeNote]; n > 0 {
		line += ", " + cli.Count(n, "note", "")
	}
	p.text(line + "\n")
}

func (s subject) heading() string {
	return cmp.Or(s.title, "cluster "+s.target.Cluster+" "+s.target.Endpoint)
}

// text writes a line for people. That it cannot be written shows at the end.
func (p *findingPrinter) text(line string) {
	if !p.app.forMachines() {
		_ = p.app.line(line)
	}
}

func (p *findingPrinter) add(v findingView) {
	p.counts[v.Outcome]++
	if v.Outcome == outcomeFail {
		p.failed++
	}
	v.Cluster, v.Endpoint, v.File = cmp.Or(v.Cluster, p.subject.target.Cluster), p.subject.target.Endpoint, p.subject.file
	p.views = append(p.views, v)
	p.waiting.say("checking " + p.subject.heading())
	p.text(v.line())
}

// line is outcome, check, cause, evidence and remedy in one line.
func (v findingView) line() string {
	line := fmt.Sprintf("%-4s  %-22s  ", v.Outcome, v.Check)
	if v.Cause != "" && v.Cause != v.Evidence {
		line += v.Cause + ": "
	}
	line = strings.TrimSuffix(line+v.Evidence, ": ")
	if v.Remedy != "" {
		line += "; remedy: " + v.Remedy
	}
	return line
}

func (p *findingPrinter) flush() error {
	if !p.app.forMachines() {
		return nil
	}
	return p.app.encode(p.views)
}
