package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Check returns everything that contradicts itself in d: each key leads to a
// number of its own, whose meta record is the key's, whose header names one
// complete region of its own, in which every record belongs to it and the
// selected ones fit; and each record's cluster has a name.
func Check(d layout.Dump, c layout.Capacity) []error {
	var errs []error
	keys, ids := map[layout.FrontendKey]bool{}, map[uint32]bool{}
	free := newSlab(c.Records)
	for i := range d.Frontends {
		f := &d.Frontends[i]
		fail := func(reason string) {
			errs = append(errs, fmt.Errorf("frontend %s with number %d: %s", addrPort(f.Key.Addr, f.Key.Port), f.ID, reason))
		}
		if reason := impossible(f, c); reason != "" {
			fail(reason)
			continue
		}
		if keys[f.Key] || ids[f.ID] {
			fail("its key or number occurs twice")
		}
		keys[f.Key], ids[f.ID] = true, true
		if !free.reserve(span{f.Header.Offset() - 1, uint32(f.Region.Records())}) {
			fail("its region overlaps another one or the end of the slab")
		}
		for _, reason := range checkRecords(f, d.Clusters) {
			fail(reason)
		}
	}
	return errs
}

func checkRecords(f *layout.DumpFrontend, clusters map[uint16]layout.Cluster) []string {
	var out []string
	for i, b := range f.Backends {
		if b.Alias != 0 && uint16(i)+b.Alias >= f.Header.Selected() {
			out = append(out, fmt.Sprintf("record %d gives its draws to a record that is not selected", i))
		}
		if b.Frontend != f.ID {
			out = append(out, fmt.Sprintf("record %d belongs to frontend %d", i, b.Frontend))
		}
		if _, known := clusters[b.Cluster]; !known && b.Cluster != 0 {
			out = append(out, fmt.Sprintf("record %d is of unknown cluster %d", i, b.Cluster))
		}
	}
	return out
}

// FormatDump renders what the maps hold as sorted text: a line per frontend, an
// indented one per backend, "+" for those that take new connections, with its
// part of the draws or of the table's slots unless all are even. Numbers and
// places in the slab do not show, so equal content is equal text, and equal to
// what [Want] makes of the tables.
func FormatDump(d layout.Dump) string {
	lines := make([]string, len(d.Frontends))
	for i := range d.Frontends {
		f := &d.Frontends[i]
		r, s := restored(f, d.Clusters), selectionOf(f)
		if s.Consistent {
			s.Shares = counts(f.Table, int(f.Header.Selected()))
		}
		lines[i] = formatFrontend(&r, &s, int(f.Header.Selected()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// counts is how many slots each backend has.
func counts(table []uint16, selected int) []uint64 {
	out := make([]uint64, selected)
	for _, slot := range table {
		if int(slot) < selected {
			out[slot]++
		}
	}
	return out
}

// Want renders what the maps hold once tables are set, as [FormatDump] does.
func Want(tables []lb.FrontendTable) string {
	lines := make([]string, len(tables))
	for i := range tables {
		t := &tables[i]
		r := Restored{Service: t.Service, Frontend: t.Frontend, Affinity: t.Affinity}
		selected := 0
		for j := range t.Backends {
			r.Backends = append(r.Backends, t.Backends[j].Backend)
			if t.Backends[j].Selected {
				selected++
			}
		}
		s := wantSelection(t, selected)
		lines[i] = formatFrontend(&r, &s, selected)
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// wantSelection is what the maps are to do for t, by way of package lb.
func wantSelection(t *lb.FrontendTable, selected int) Selection {
	s := Selection{
		SessionAffinity: t.SessionAffinity, Consistent: t.Consistent && selected > 0,
		OnWithdraw: t.OnWithdraw, Drain: t.Drain,
	}
	for i := range t.Backends {
		if t.Backends[i].Withdrawn {
			s.Withdrawn = append(s.Withdrawn, i)
		}
	}
	w, addrs := make([]uint32, selected), make([]netip.AddrPort, selected)
	for i := range w {
		w[i], addrs[i] = t.Backends[i].Weight, t.Backends[i].Addr
	}
	switch {
	case s.Consistent:
		s.Shares = counts(lb.Maglev(addrs, w, lb.MaglevSize(selected)), selected)
	case !t.Even():
		s.Shares = make([]uint64, selected)
		for i, slot := range lb.Alias(w) {
			s.Shares[i] += uint64(slot.Threshold)
			s.Shares[slot.Alias] += 1<<32 - uint64(slot.Threshold)
		}
	}
	return s
}

// clients and kind are what few frontends have, "" for the others.
func clients(s lb.Scope) string {
	if s == lb.ScopeAny {
		return ""
	}
	return "@" + s.String()
}

func kind(k lb.Kind) string {
	if k == lb.KindClusterIP {
		return ""
	}
	return "/" + k.String()
}

func formatFrontend(r *Restored, s *Selection, selected int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%s%s %s port=%s%s affinity=%s selected=%d total=%d", r.Frontend.Addr, r.Frontend.Protocol, clients(r.Frontend.Scope),
		r.Service, r.Frontend.PortName, kind(r.Frontend.Kind), r.Affinity, selected, len(r.Backends))
	if s.SessionAffinity > 0 {
		fmt.Fprintf(&b, " sticky=%ds", s.SessionAffinity)
	}
	if s.Consistent {
		b.WriteString(" consistent")
	}
	if s.OnWithdraw != lb.WithdrawKeep {
		fmt.Fprintf(&b, " on-withdraw=%s,%ds", s.OnWithdraw, s.Drain)
	}
	b.WriteByte('\n')
	for i, be := range r.Backends {
		mark := "-"
		if i < selected {
			mark = "+"
		}
		fmt.Fprintf(&b, "  %s %s %s(%s) %s", mark, be.Addr, be.Cluster, strconv.Itoa(int(be.ClusterID)), be.State)
		if be.Local {
			b.WriteString(" local")
		}
		if be.Here {
			b.WriteString(" here")
		}
		if i < len(s.Shares) {
			fmt.Fprintf(&b, " share=%d", s.Shares[i])
		}
		if slices.Contains(s.Withdrawn, i) {
			b.WriteString(" withdrawn")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
