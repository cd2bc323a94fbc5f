// Package devices keeps the per-packet programs attached to the network devices
// that an operator named, as devices come and go.
//
// It is a process of its own beside the agent, because it needs the rights to
// attach programs for as long as it runs, and the agent, which reads what other
// clusters say, has given those up. It reads nothing but the kernel's list of
// devices, and it decides nothing about traffic: frontends and backends are in
// the pinned maps that the agent writes.
package devices
