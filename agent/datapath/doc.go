// Package datapath makes the eBPF maps hold what package lb decided.
//
// A [Reconciler] turns the tables of one service after the other into map
// contents and writes what differs, in an order that keeps every reader's view
// whole:
//
//   - A set of backends is never changed. A new one is written beside it and one
//     store of the frontend's header word switches over; the old region waits in
//     quarantine until no reader can still be in it.
//   - A new frontend's backends, meta record and header are complete before its
//     key is inserted. A frontend that goes loses its key first.
//   - A service changes as a whole or, when the maps are full, not at all.
//
// So the maps are sound after every single store, whatever moment the process
// dies at, and [Reconciler.Load] takes them over as they are.
//
// The package is pure: the maps are behind [Kernel], whose two implementations
// are [Memory] and the one in package bpf. It has no clock and no goroutine; the
// owner of a Reconciler serialises calls and waits for RCU periods himself (see
// [Reconciler.Quarantined]).
package datapath
