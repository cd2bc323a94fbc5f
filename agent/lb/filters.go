package lb

// Filter is one question that is put to a backend before it is used, in order.
type Filter string

// The filters, in the order in which they are asked. The one that is not passed
// is the reason why a backend is not used.
const (
	FilterPort      Filter = "port"      // a frontend has its family, protocol and port name
	FilterAddress   Filter = "address"   // no cluster has a better claim to the same address
	FilterNode      Filter = "node"      // it is on this node, if the service asks for that
	FilterClusters  Filter = "clusters"  // a tier names its cluster, if there are tiers
	FilterState     Filter = "state"     // it is ready, and not out of service
	FilterContact   Filter = "contact"   // its cluster is in contact, as the policy asks
	FilterTier      Filter = "tier"      // its tier, or its side by the affinity, has its turn
	FilterWeight    Filter = "weight"    // its cluster has a weight
	FilterProximity Filter = "proximity" // none is nearer, if the service asks for that
)

// Filters returns all of them in order.
func Filters() []Filter {
	return []Filter{FilterPort, FilterAddress, FilterNode, FilterClusters, FilterState, FilterContact, FilterTier, FilterWeight, FilterProximity}
}

// DroppedBy returns the filter that a backend with this reason did not pass, and
// what that means in a few words; "" and why it is used for one that is. A reason
// that is not known here is dropped by FilterPort.
func DroppedBy(reason string) (Filter, string) {
	switch reason {
	case ReasonActive:
		return "", "ready, and in the tier preferred most"
	case ReasonFallback:
		return "", "ready; the tiers before its own have none"
	case ReasonSpillover:
		return "", "ready; the tiers before its own have too few"
	case ReasonTerminatingLast:
		return "", "going away, and no ready one is left"
	case ReasonLastResort:
		return "", "nothing better is left"
	case ReasonDuplicate:
		return FilterAddress, "another cluster, with a better claim, has the same address"
	case ReasonOtherNode:
		return FilterNode, "the service is for backends of this node only (internalTrafficPolicy)"
	case ReasonExcluded:
		return FilterClusters, "no tier names its cluster (clustermesh.io/tiers)"
	case ReasonNotReady:
		return FilterState, "its pod is not ready"
	case ReasonMaintenance:
		return FilterState, "an operator took it out"
	case ReasonQuarantined:
		return FilterState, "it was seen to fail, and others do not"
	case ReasonTerminating:
		return FilterState, "its pod is going away, and ready ones are there"
	case ReasonStale:
		return FilterContact, "its cluster is out of contact for longer than clustermesh.io/staleness allows"
	case ReasonTier:
		return FilterTier, "a tier before its own has enough (clustermesh.io/tiers)"
	case ReasonAffinity:
		return FilterTier, "the side that is preferred has some (service.cilium.io/affinity)"
	case ReasonWeight:
		return FilterWeight, "its cluster has weight 0 (clustermesh.io/weights)"
	case ReasonFarther:
		return FilterProximity, "nearer ones are there (trafficDistribution)"
	}
	return FilterPort, "no frontend has its protocol and port name"
}
