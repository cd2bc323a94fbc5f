// Package index declares the keys of the absent module's tables, as far as
// Cilium mentions them. Every function panics.
package index

import (
	"fmt"
	"net/netip"
)

const absent = "github.com/cilium/statedb/index is declared here, not implemented"

// Key is an object's place in an index.
type Key []byte

// KeySet is all keys of one object in one index.
type KeySet struct{}

// NewKeySet panics.
func NewKeySet(...Key) KeySet { panic(absent) }

// String panics.
func String(string) Key { panic(absent) }

// FromString panics.
func FromString(string) (Key, error) { panic(absent) }

// Stringer panics.
func Stringer[T fmt.Stringer](T) Key { panic(absent) }

// StringerSlice panics.
func StringerSlice[T fmt.Stringer]([]T) KeySet { panic(absent) }

// Bool panics.
func Bool(bool) Key { panic(absent) }

// BoolString panics.
func BoolString(string) (Key, error) { panic(absent) }

// Int panics.
func Int(int) Key { panic(absent) }

// IntString panics.
func IntString(string) (Key, error) { panic(absent) }

// NetIPAddr panics.
func NetIPAddr(netip.Addr) Key { panic(absent) }

// NetIPAddrString panics.
func NetIPAddrString(string) (Key, error) { panic(absent) }
