package statedb

import (
	"context"
	"iter"
	"time"
)

// Collect panics.
func Collect[Obj any](iter.Seq2[Obj, Revision]) []Obj { panic(absent) }

// ToSeq panics.
func ToSeq[A, B any](iter.Seq2[A, B]) iter.Seq[A] { panic(absent) }

// Map panics.
func Map[In, Out any](iter.Seq2[In, Revision], func(In) Out) iter.Seq2[Out, Revision] { panic(absent) }

// Filter panics.
func Filter[Obj any](iter.Seq2[Obj, Revision], func(Obj) bool) iter.Seq2[Obj, Revision] {
	panic(absent)
}

// WatchSet would wait for several channels.
type WatchSet struct{}

// NewWatchSet panics.
func NewWatchSet() *WatchSet { panic(absent) }

// Add panics.
func (*WatchSet) Add(...<-chan struct{}) { panic(absent) }

// Wait panics.
func (*WatchSet) Wait(context.Context, time.Duration) ([]<-chan struct{}, error) { panic(absent) }

// Metrics is implemented by Cilium.
type Metrics interface {
	WriteTxnTableAcquisition(handle string, tableName string, acquire time.Duration)
	WriteTxnTotalAcquisition(handle string, tables []string, acquire time.Duration)
	WriteTxnDuration(handle string, tables []string, acquire time.Duration)
	GraveyardLowWatermark(tableName string, lowWatermark Revision)
	GraveyardCleaningDuration(tableName string, duration time.Duration)
	GraveyardObjectCount(tableName string, numDeletedObjects int)
	ObjectCount(tableName string, numObjects int)
	DeleteTrackerCount(tableName string, numTrackers int)
	Revision(tableName string, revision Revision)
}
