package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// rcuWaiter waits for an RCU period by storing into a map of maps: the kernel
// then returns only after every program that may still use the replaced inner
// map has ended (maybe_wait_bpf_programs in kernel/bpf/syscall.c). Programs on
// cgroup hooks run inside such a read section from start to end.
type rcuWaiter struct{ outer, inner *ebpf.Map }

func (w *rcuWaiter) open(Options) (err error) {
	inner := &ebpf.MapSpec{Name: "cm_rcu_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	if w.inner, err = ebpf.NewMap(inner); err != nil {
		return fmt.Errorf("create inner map for RCU waits: %w", err)
	}
	w.outer, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "cm_rcu_outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner,
	})
	if err != nil {
		return fmt.Errorf("create outer map for RCU waits: %w", err)
	}
	return nil
}

func (w *rcuWaiter) close() error {
	err := errors.Join(closeMap(w.outer), closeMap(w.inner))
	w.outer, w.inner = nil, nil
	return err
}

func closeMap(m *ebpf.Map) error {
	if m == nil {
		return nil
	}
	return m.Close()
}

// WaitRCU returns when every program run that was under way at the call has
// ended: what was invisible to new runs before the call is then read by none.
// It takes about 10 ms. Any goroutine may call it.
func (d *Datapath) WaitRCU() error {
	if err := d.rcu.outer.Put(uint32(0), d.rcu.inner); err != nil {
		return fmt.Errorf("wait for an RCU period: %w", err)
	}
	return nil
}
