// Package lab is the machine room of the end-to-end tests: namespaces, cgroups,
// nodes joined by a bridge, and processes that start inside of them.
//
// Run the whole test binary through [Isolate] first: everything the lab makes
// afterwards (processes, mounts, interfaces) dies with that inner process.
package lab
