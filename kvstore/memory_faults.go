package kvstore

import (
	"context"
	"errors"
)

// FaultOp names a point of a Memory at which a fault can strike.
type FaultOp string

// The points at which the hook of [Memory.SetFault] is asked. At FaultApplied
// the operations are in the store and only their answer can still get lost.
const (
	FaultRange   FaultOp = "range"
	FaultWatch   FaultOp = "watch"
	FaultApply   FaultOp = "apply"
	FaultApplied FaultOp = "applied"
)

// Fault describes an operation about to happen (or, at FaultApplied, just
// done). Key is the start of a range or watch; Ops are those of an Apply.
type Fault struct {
	Op  FaultOp
	Key string
	Ops []Op
}

// ErrBroken is the error of an operation or watch that a test made fail.
var ErrBroken = errors.New("connection broken")

// SetFault makes every operation ask hook first and fail with the error it
// returns; a nil hook ends that. The hook is called without locks held, by
// several goroutines at once.
func (m *Memory) SetFault(hook func(Fault) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = hook
}

// FailNext makes the next n operations of the given kind fail with ErrBroken.
// It replaces the hook of SetFault.
func (m *Memory) FailNext(op FaultOp, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = func(f Fault) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if f.Op != op || n == 0 {
			return nil
		}
		n--
		return ErrBroken
	}
}

// BreakWatches ends all running watches with err (ErrBroken when nil).
func (m *Memory) BreakWatches(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.breakWatches(err)
}

func (m *Memory) breakWatches(err error) {
	if err == nil {
		err = ErrBroken
	}
	m.breakErr = err
	close(m.broken)
	m.broken = make(chan struct{})
}

// NewLife makes the store what a server is after losing its data directory:
// empty, at revision 1, with another life id. Running watches break.
func (m *Memory) NewLife() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
	m.breakWatches(nil)
}

// SetPageCap makes the store answer at most n keys per Range whatever the
// limit asked for, as a guarded server does; 0 takes the cap away.
func (m *Memory) SetPageCap(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pageCap = n
}

func (m *Memory) enter(ctx context.Context, f Fault) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	hook := m.fault
	m.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(f)
}
