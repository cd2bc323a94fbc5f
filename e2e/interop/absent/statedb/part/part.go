// Package part declares the absent module's persistent maps, as far as Cilium
// mentions them. They hold nothing.
package part

const absent = "github.com/cilium/statedb/part is declared here, not implemented"

// RegisterKeyType does nothing: Cilium calls it when its packages are
// initialised.
func RegisterKeyType[K any](func(K) []byte) {}

// Map would be an immutable map.
type Map[K, V any] struct{}

// Get panics.
func (Map[K, V]) Get(K) (V, bool) { panic(absent) }

// Txn panics.
func (Map[K, V]) Txn() MapTxn[K, V] { panic(absent) }

// MapTxn would be a map in the making.
type MapTxn[K, V any] struct{}

// Get panics.
func (MapTxn[K, V]) Get(K) (V, bool) { panic(absent) }

// Set panics.
func (MapTxn[K, V]) Set(K, V) { panic(absent) }

// Delete panics.
func (MapTxn[K, V]) Delete(K) bool { panic(absent) }

// Commit panics.
func (MapTxn[K, V]) Commit() Map[K, V] { panic(absent) }

// Set would be an immutable set.
type Set[T any] struct{}
