//go:build !linux

package demo

import "context"

// Run returns a MissingError: the data path is Linux's.
func Run(context.Context, Config) (Report, error) {
	return Report{}, MissingError{"Linux: the demo needs its namespaces, cgroups and eBPF"}
}
