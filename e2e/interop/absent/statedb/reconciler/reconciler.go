// Package reconciler declares the absent module's reconciler, as far as Cilium
// mentions it. Every function panics.
package reconciler

import (
	"context"
	"iter"
	"time"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb"
	"golang.org/x/time/rate"
)

const absent = "github.com/cilium/statedb/reconciler is declared here, not implemented"

// StatusKind is what a Status says in one word.
type StatusKind string

// String panics.
func (StatusKind) String() string { panic(absent) }

// Status would say how far an object is reconciled.
type Status struct {
	Kind      StatusKind
	UpdatedAt time.Time
}

// String panics.
func (Status) String() string { panic(absent) }

// GetError panics.
func (Status) GetError() string { panic(absent) }

// StatusPending panics.
func StatusPending() Status { panic(absent) }

// Params is what a reconciler needs.
type Params struct {
	cell.In
}

// Reconciler is what Register would return.
type Reconciler[Obj any] interface {
	Prune()
}

// Operations is implemented by Cilium.
type Operations[Obj any] interface {
	Update(context.Context, statedb.ReadTxn, statedb.Revision, Obj) error
	Delete(context.Context, statedb.ReadTxn, statedb.Revision, Obj) error
	Prune(context.Context, statedb.ReadTxn, iter.Seq2[Obj, statedb.Revision]) error
}

// BatchEntry is one object of a batch.
type BatchEntry[Obj any] struct {
	Object   Obj
	Revision statedb.Revision
	Result   error
}

// BatchOperations is implemented by Cilium.
type BatchOperations[Obj any] interface {
	UpdateBatch(context.Context, statedb.ReadTxn, []BatchEntry[Obj])
	DeleteBatch(context.Context, statedb.ReadTxn, []BatchEntry[Obj])
}

// Option changes a reconciler.
type Option struct{}

// WithRoundLimits panics.
func WithRoundLimits(int, *rate.Limiter) Option { panic(absent) }

// Register panics.
func Register[Obj any](
	Params, statedb.RWTable[Obj], func(Obj) Obj, func(Obj, Status) Obj, func(Obj) Status,
	Operations[Obj], BatchOperations[Obj], ...Option,
) (Reconciler[Obj], error) {
	panic(absent)
}

// Metrics is implemented by Cilium.
type Metrics interface {
	ReconciliationDuration(moduleID cell.FullModuleID, name string, operation string, duration time.Duration)
	ReconciliationErrors(moduleID cell.FullModuleID, name string, new, current int)
	PruneError(moduleID cell.FullModuleID, name string, err error)
	PruneDuration(moduleID cell.FullModuleID, name string, duration time.Duration)
}
