package lb_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// TestWithdrawnIsTheClustersFault: a backend counts as withdrawn exactly if its
// cluster was given up, dead or out of contact for too long, and others took its
// place. What the policy merely does not prefer, what is going away or not ready
// in a cluster that is in contact, is not.
func TestWithdrawnIsTheClustersFault(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genPolicyService(t)
		for _, table := range lb.Merge(s) {
			for _, c := range table.Backends {
				if want := withdrawn(s, table, c); c.Withdrawn != want {
					t.Fatalf("withdrawn is %v, want %v, of %+v\n%+v\n%s", c.Withdrawn, want, c, s.Policy, table)
				}
			}
		}
	})
}

func withdrawn(s lb.Service, table lb.FrontendTable, c lb.Choice) bool {
	switch c.Reason {
	case lb.ReasonDuplicate, lb.ReasonOtherNode, lb.ReasonExcluded:
		return false // it would not be used either if its cluster were well
	}
	if c.Selected || c.State == lb.Maintenance || !table.Backends[0].Selected {
		return false
	}
	j, _ := judge(s, table.Frontend, c.Backend)
	if c.State == lb.Quarantined {
		return c.Reason != lb.ReasonWeight && c.Reason != lb.ReasonFarther
	}
	return j.lost && !usesLost(s, table) && table.Backends[0].State != lb.Quarantined
}

// usesLost reports whether a table makes do with clusters that are out of contact.
func usesLost(s lb.Service, table lb.FrontendTable) bool {
	j, _ := judge(s, table.Frontend, table.Backends[0].Backend)
	return table.Backends[0].Selected && j.lost && table.Backends[0].State != lb.Quarantined
}

// TestNothingIsWithdrawnWithoutAReplacement: with the last backends of a service
// its connections stay, too.
func TestNothingIsWithdrawnWithoutAReplacement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for _, table := range lb.Merge(genPolicyService(t)) {
			for _, c := range table.Backends {
				if c.Withdrawn && (c.Selected || !table.Backends[0].Selected) {
					t.Fatalf("%+v is withdrawn\n%s", c, table)
				}
			}
		}
	})
}
