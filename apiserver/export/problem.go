package export

import (
	"cmp"
	"slices"
)

// Reason is why an object, or a part of it, is not exported. It is short and
// bounded: it may be a metric's label.
type Reason string

// The reasons.
const (
	InvalidAnnotation   Reason = "invalid-annotation"   // an annotation has a value we do not know; its default holds
	InvalidAddress      Reason = "invalid-address"      // an address does not parse, or is of the wrong family
	InvalidPort         Reason = "invalid-port"         // a port number or protocol is unusable
	PortConflict        Reason = "port-conflict"        // one address has two numbers for one port name
	AddressConflict     Reason = "address-conflict"     // two pods claim one address
	NamespaceMissing    Reason = "namespace-missing"    // the namespace of a global service is not known
	UnsupportedType     Reason = "unsupported-type"     // an ExternalName service cannot be global
	TooLarge            Reason = "too-large"            // a service has more backends than one record may hold
	IdentitiesExhausted Reason = "identities-exhausted" // no identity number is free
	InvalidSlice        Reason = "invalid-slice"        // an endpoint slice holds what readers refuse
	InvalidExport       Reason = "invalid-export"       // a service export holds what readers refuse
	InvalidIdentity     Reason = "invalid-identity"     // a number or label of Cilium's is not this cluster's
)

// Reasons returns all reasons, sorted.
func Reasons() []Reason {
	return []Reason{AddressConflict, IdentitiesExhausted, InvalidAddress, InvalidAnnotation,
		InvalidExport, InvalidIdentity, InvalidPort, InvalidSlice, NamespaceMissing, PortConflict, TooLarge, UnsupportedType}
}

// Problem is something that is not exported although it should be.
type Problem struct {
	Object  string // kind and name, such as "Service shop/web"
	Reason  Reason
	Message string // what is wrong, with the value, and what to change
}

// Problems returns all present problems, sorted. The caller must not change
// them.
func (e *Exporter) Problems() []Problem {
	if e.sorted != nil {
		return e.sorted
	}
	e.sorted = []Problem{}
	for _, some := range e.problems {
		e.sorted = append(e.sorted, some...)
	}
	slices.SortFunc(e.sorted, compareProblems)
	return e.sorted
}

func compareProblems(a, b Problem) int {
	return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
}

// report replaces what is wrong at one place.
func (e *Exporter) report(place string, found []Problem) {
	if len(found) == 0 && len(e.problems[place]) == 0 {
		return
	}
	e.sorted = nil
	e.problems[place] = found
	if len(found) == 0 {
		delete(e.problems, place)
	}
}

// findings collects the problems of one object.
type findings struct {
	object string
	found  []Problem
}

func (f *findings) add(reason Reason, message string) {
	p := Problem{Object: f.object, Reason: reason, Message: message}
	if !slices.Contains(f.found, p) {
		f.found = append(f.found, p)
	}
}
