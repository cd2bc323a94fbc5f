package export

import (
	"maps"
	"slices"
)

// ServiceState is what the owner of a service may want to know of its export.
type ServiceState struct {
	Namespace, Name, UID string

	Gone     bool      // it does not exist; nothing else is set then
	Exported bool      // other clusters are offered its backends
	Hidden   bool      // it says that it is global, and its namespace that it is not
	Idle     []string  // annotations without effect since it does not say that it is global, sorted
	Problems []Problem // what is not exported although it should be, sorted
}

// TakeServices returns the state of each service that was computed anew since
// the last call, sorted by name.
func (e *Exporter) TakeServices() []ServiceState {
	noted := slices.SortedFunc(maps.Keys(e.noted), compareNames)
	clear(e.noted)
	out := make([]ServiceState, 0, len(noted))
	for _, n := range noted {
		out = append(out, e.stateOf(n))
	}
	return out
}

func (e *Exporter) stateOf(n name) ServiceState {
	state := ServiceState{Namespace: n.namespace, Name: n.name}
	s := e.services[n]
	if s == nil {
		state.Gone = true
		return state
	}
	_, state.Exported = e.shared[n]
	p := policyOf(s, &findings{})
	state.UID = string(s.UID)
	state.Hidden = p.global && e.namespaces[n.namespace] != nil && !e.global(n.namespace)
	state.Problems = slices.SortedFunc(slices.Values(e.problems["Service "+n.String()]), compareProblems)
	if !p.global {
		state.Idle = idle(s.Annotations)
	}
	return state
}

// idle lists the annotations that mean nothing without the global one, unless
// that is there and says no: then they wait for being needed.
func idle(annotations map[string]string) []string {
	if _, _, said := first(annotations, globalAnnotation, oldGlobalAnnotation); said {
		return nil
	}
	var out []string
	for _, key := range []string{sharedAnnotation, oldSharedAnnotation, affinityAnnotation, oldAffinityAnnotation} {
		if _, there := annotations[key]; there {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}
