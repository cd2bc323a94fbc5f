// Package identity gives every label set of a cluster a number that readers
// of the mesh use as the pods' security identity.
//
// Nobody is asked for a number: it is the first free one of a sequence that
// follows from a hash of the labels, so that a server that lost everything
// gives nearly all label sets the numbers they had. A journal keeps the
// assignments over restarts and makes that exact. The decision, and what it
// does not cover, is in docs/adr/0001-identity-numbers.md.
//
// The package is pure. Time is a number of seconds that the caller passes in,
// the journal is text that the caller stores.
package identity
