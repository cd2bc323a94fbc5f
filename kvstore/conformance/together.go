package conformance

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Seen is what a run learnt of a cluster that matters beside other clusters.
type Seen struct {
	Cluster string
	// ID is the announced one, 0 if it was not read.
	ID uint32
	// PodRanges are those of the cluster's nodes, at most 10,000 of them.
	PodRanges []netip.Prefix
}

const maxRanges = 10_000

// seenNode keeps the pod ranges of a node.
func (s *session) seenNode(n *schema.Node) {
	ranges := append([]schema.CIDR{}, n.IPv4SecondaryAllocCIDRs...)
	ranges = append(ranges, n.IPv6SecondaryAllocCIDRs...)
	for _, c := range []*schema.CIDR{n.IPv4AllocCIDR, n.IPv6AllocCIDR} {
		if c != nil {
			ranges = append(ranges, *c)
		}
	}
	for _, c := range ranges {
		if p, ok := c.Prefix(); ok && len(s.ranges) < maxRanges {
			s.ranges = append(s.ranges, p)
		}
	}
}

// Together checks what several clusters must not have in common. seen may hold a
// cluster more than once, for each of its endpoints. There is one result per
// check, and one more per further pair of clusters that fails it.
func Together(seen []Seen) []Result {
	var results []Result
	for _, check := range []struct {
		Check
		find func([]Seen) []string
	}{
		{Check{
			ID: "mesh-ids", Group: "mesh", Title: "each cluster has an id of its own",
			Why:    "identities and backends of the two cannot be told apart; agents refuse the one that comes second",
			Remedy: "give one of the two clusters another --cluster-id, restart its apiserver and agents, and restart its workloads if Cilium is its network",
		}, sameIDs},
		{Check{
			ID: "mesh-pod-ranges", Group: "mesh", Title: "no two clusters have a pod range in common",
			Why:    "packets to a pod of one cluster reach a pod of the other, or none",
			Remedy: "give one of the two clusters other pod CIDRs; until then keep it out of the mesh, or limit it with accepts.pod-cidrs in its peer file",
		}, overlaps},
	} {
		found := check.find(seen)
		for _, evidence := range found {
			results = append(results, Result{Check: check.Check, Outcome: Fail, Cause: causes()[check.ID], Evidence: printable(evidence), Remedy: check.Remedy})
		}
		if len(found) == 0 {
			results = append(results, Result{Check: check.Check, Outcome: Pass, Evidence: count(clusters(seen), "cluster")})
		}
	}
	return results
}

func clusters(seen []Seen) int {
	names := map[string]bool{}
	for _, s := range seen {
		names[s.Cluster] = true
	}
	return len(names)
}

func sameIDs(seen []Seen) (found []string) {
	holder := map[uint32]string{}
	for _, s := range seen {
		other, taken := holder[s.ID]
		switch {
		case s.ID == 0 || taken && other == s.Cluster:
		case taken:
			found = append(found, fmt.Sprintf("%s and %s have id %d", other, s.Cluster, s.ID))
		default:
			holder[s.ID] = s.Cluster
		}
	}
	return found
}

// held is a range and whose it is.
type held struct {
	netip.Prefix
	cluster string
}

// overlaps names one pair of ranges for each pair of clusters. Of two ranges
// that overlap one holds the other, so in order of address and size whoever
// holds a range comes before it.
func overlaps(seen []Seen) (found []string) {
	var all, open []held
	for _, s := range seen {
		for _, p := range s.PodRanges {
			all = append(all, held{p.Masked(), s.Cluster})
		}
	}
	slices.SortFunc(all, func(a, b held) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()), strings.Compare(a.cluster, b.cluster))
	})
	told := map[[2]string]bool{}
	for _, h := range all {
		open = slices.DeleteFunc(open, func(o held) bool { return !o.Overlaps(h.Prefix) })
		for _, o := range open {
			pair := [2]string{min(o.cluster, h.cluster), max(o.cluster, h.cluster)}
			if o.cluster != h.cluster && !told[pair] {
				told[pair] = true
				found = append(found, fmt.Sprintf("%s of %s and %s of %s", o.Prefix, o.cluster, h.Prefix, h.cluster))
			}
		}
		if len(open) == 0 || open[len(open)-1] != h {
			open = append(open, h)
		}
	}
	return found
}

// tell reports what the run has learnt.
func (s *session) tell() {
	if s.opts.OnSeen != nil {
		s.opts.OnSeen(Seen{Cluster: s.target.Cluster, ID: s.config.ID, PodRanges: s.ranges})
	}
}
