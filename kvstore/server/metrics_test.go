package server

import (
	"testing"
	"time"
)

// TestMetricsWhileTheDiskHangs: while etcd's database waits for the disk its lock is
// held, and the metrics, which are to tell of it, are served all the same.
func TestMetricsWhileTheDiskHangs(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.put("cilium/state/a=1")
	etcd := w.s.life.Load().etcd
	reader := etcd.Backend().ReadTx()
	reader.RLock() // a commit waits for it as for a disk, and everybody else for the commit
	committed := make(chan struct{})
	go func() { etcd.Backend().ForceCommit(); close(committed) }()
	t.Cleanup(func() { reader.RUnlock(); <-committed })
	eventually(t, "etcd hangs", func() bool { return !soon(100*time.Millisecond, func() { etcd.KV().Rev() }) })
	if !soon(patience, func() { _, _ = w.reg.Gather() }) {
		t.Error("metrics are not served while etcd's database waits for the disk")
	}
}

// soon reports whether f returns within d. Else it goes on.
func soon(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
