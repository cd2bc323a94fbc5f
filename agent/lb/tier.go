package lb

// Tier returns the number, from 1, of the tier that the service's policy or
// affinity gives a cluster, whatever its present state; 0 if none names it.
func (s *Service) Tier(cluster string, local bool) int {
	m := merger{s: s, nearest: s.Policy.nearest()}
	return m.shown(m.tier(&site{cluster: cluster, local: local})) + 1
}
