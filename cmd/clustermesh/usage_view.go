package main

import (
	"fmt"
	"io"

	"github.com/clustermesh/clustermesh/agent/api"
)

// usageView is how full maps are that programs fill.
type usageView []mapUsageView

type mapUsageView struct {
	Map        string  `json:"map"`
	Entries    uint32  `json:"entries"`
	Capacity   uint32  `json:"capacity"`
	AgeSeconds float64 `json:"ageSeconds"` // since they were counted
	WhenFull   string  `json:"whenFull"`
}

func newUsage(r *api.MapsResponse) usageView {
	out := usageView{}
	for _, u := range r.GetUsage() {
		out = append(out, mapUsageView{u.GetMap(), u.GetEntries(), u.GetCapacity(), u.GetAgeSeconds(), u.GetWhenFull()})
	}
	return out
}

func (v usageView) table(w io.Writer) {
	if len(v) == 0 {
		return
	}
	fmt.Fprintln(w, "MAP\tENTRIES\tCAPACITY\tFULL\tCOUNTED\tWHEN FULL")
	for _, u := range v {
		fmt.Fprintf(w, "%s\t%d\t%d\t%.0f%%\t%s ago\t%s\n", u.Map, u.Entries, u.Capacity, 100*float64(u.Entries)/float64(max(1, u.Capacity)), seconds(u.AgeSeconds), u.WhenFull)
	}
}
