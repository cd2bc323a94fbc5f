// Package kernel reads a node's pinned eBPF maps by their documented layout,
// from outside of the agent, so that what a test compares is what the programs
// use.
package kernel
