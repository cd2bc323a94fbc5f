package main

import (
	"fmt"
	"io"

	"github.com/clustermesh/clustermesh/agent/api"
)

// chosenView is a backend with its part in a decision: the weight relative to
// the other used ones, the same in percent, and the tier of its cluster from 1,
// or 0 if no tier names it.
type chosenView struct {
	backendView
	Weight uint32  `json:"weight"`
	Share  float64 `json:"share"`
	Tier   uint32  `json:"tier"`
	// Provisional backends were known before a reconnect or a restart, and their
	// cluster has not said them again.
	Provisional bool `json:"provisional"`
}

func newChosen(list []*api.Backend) []chosenView {
	out := []chosenView{}
	for i, b := range newBackends(list) {
		out = append(out, chosenView{b, list[i].GetWeight(), list[i].GetShare(), list[i].GetTier(), list[i].GetProvisional()})
	}
	return out
}

// printUsed leaves the parts out.
func printUsed(w io.Writer, list []chosenView) {
	plain := make([]backendView, len(list))
	for i, b := range list {
		plain[i] = b.marked()
	}
	printBackends(w, plain)
}

func printChosen(w io.Writer, list []chosenView) {
	fmt.Fprintln(w, "  BACKEND\tCLUSTER\tSTATE\tUSED\tREASON\tTIER\tWEIGHT\tSHARE")
	for _, b := range list {
		fmt.Fprintf(w, "  %s\n", b.row())
	}
}

// marked is a backend as tables show it: its state says if it is provisional.
func (b chosenView) marked() backendView {
	if b.Provisional {
		b.State += " (provisional)"
	}
	return b.backendView
}

// row is a backend with all its parts.
func (b chosenView) row() string {
	tier, weight, share := "-", "-", "-"
	if b.Tier > 0 {
		tier = fmt.Sprint(b.Tier)
	}
	if b.Selected {
		weight, share = fmt.Sprint(b.Weight), fmt.Sprintf("%.2f%%", b.Share)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s", b.marked(), tier, weight, share)
}
