package agent

import "github.com/clustermesh/clustermesh/bpf"

// Sweeps are those of a process that runs, or runs not.
func (k *memoryKernel) Sweeps() bpf.Sweeps {
	s := bpf.Sweeps{TCP: 3, UDP: 2, Missed: 1}
	if k.sweeping.Load() {
		s.Looked = bpf.Monotonic()
	}
	return s
}
