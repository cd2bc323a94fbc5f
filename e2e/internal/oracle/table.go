package oracle

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Frontend is one address, port and protocol that clients use.
type Frontend struct {
	Addr     netip.AddrPort
	Protocol string // TCP or UDP
	// Clients are "" for all, "outside" for packets of clients outside, "host" for
	// sockets in the node's own network namespace.
	Clients string
}

// String is the address, and the clients if they are not all.
func (f Frontend) String() string {
	text := f.Addr.String() + "/" + f.Protocol
	if f.Clients != "" {
		text += "@" + f.Clients
	}
	return text
}

// Backend is one endpoint as one cluster claims it.
type Backend struct {
	Addr    netip.AddrPort
	Cluster string
	State   string // active, terminating or not-ready
}

// Entry is what a map holds for a frontend. Both sets are keyed by backend.
type Entry struct {
	Service  string // namespace/name
	Affinity string // none, local or remote
	Selected map[Backend]bool
	Others   map[Backend]bool // known, but not for new connections
}

// Table is everything a node's maps hold.
type Table map[Frontend]Entry

// String is the table as sorted text, equal for equal tables.
func (t Table) String() string {
	return strings.Join(t.lines(), "\n")
}

func (t Table) lines() []string {
	var lines []string
	for f, e := range t {
		head := fmt.Sprintf("%s %s affinity=%s", e.Service, f, e.Affinity)
		lines = append(lines, head)
		for b := range e.Selected {
			lines = append(lines, fmt.Sprintf("%s > %s %s %s", head, b.Cluster, b.Addr, b.State))
		}
		for b := range e.Others {
			lines = append(lines, fmt.Sprintf("%s - %s %s %s", head, b.Cluster, b.Addr, b.State))
		}
	}
	slices.Sort(lines)
	return lines
}

// Equal compares two tables.
func (t Table) Equal(other Table) bool {
	return maps.EqualFunc(t, other, func(a, b Entry) bool {
		return a.Service == b.Service && a.Affinity == b.Affinity &&
			maps.Equal(a.Selected, b.Selected) && maps.Equal(a.Others, b.Others)
	})
}

// Diff shows what of want is missing in t and what t has beyond it.
func (t Table) Diff(want Table) string {
	has, wanted := t.lines(), want.lines()
	var out []string
	for _, line := range wanted {
		if _, found := slices.BinarySearch(has, line); !found {
			out = append(out, "missing: "+line)
		}
	}
	for _, line := range has {
		if _, found := slices.BinarySearch(wanted, line); !found {
			out = append(out, "beyond:  "+line)
		}
	}
	return strings.Join(out, "\n")
}
