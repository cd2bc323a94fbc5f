// Package statedb declares the names of github.com/cilium/statedb that Cilium's
// packages mention, so that those packages build where that module cannot be
// had. It stores nothing: whoever calls into it panics. The declarations were
// written from their uses in Cilium alone.
package statedb

import (
	"iter"

	"github.com/cilium/hive/cell"
	"github.com/cilium/statedb/index"
	"github.com/cilium/stream"
)

// absent is what every call that would need the real module ends in.
const absent = "github.com/cilium/statedb is declared here, not implemented"

// Cell takes the real module's place in lists of cells that are never run.
var Cell cell.Cell

// ErrObjectNotFound is compared with and never returned here.
const ErrObjectNotFound = notFound("object not found")

type notFound string

func (e notFound) Error() string { return string(e) }

// Names that the real module gives to plain types.
type (
	Revision  = uint64
	TableName = string
)

// TableWritable is an object that prints as a row.
type TableWritable interface {
	TableHeader() []string
	TableRow() []string
}

// ReadTxn is a view of the tables.
type ReadTxn interface{ readTxn() }

// WriteTxn is a change in the making.
type WriteTxn interface {
	ReadTxn
	Abort()
	Commit() ReadTxn
}

// TableMeta is what all tables have, whatever they hold.
type TableMeta interface {
	Name() TableName
}

// Indexer is any index of a table of Obj.
type Indexer[Obj any] interface {
	ObjectToKey(Obj) index.Key
}

// Index says how objects are found by Key.
type Index[Obj, Key any] struct {
	Name       string
	FromObject func(Obj) index.KeySet
	FromKey    func(Key) index.Key
	FromString func(string) (index.Key, error)
	Unique     bool
}

// ObjectToKey panics.
func (Index[Obj, Key]) ObjectToKey(Obj) index.Key { panic(absent) }

// Query is empty: Cilium makes queries when its packages are initialised, and
// nothing here can be asked.
func (Index[Obj, Key]) Query(Key) Query[Obj] { return Query[Obj]{} }

// QueryFromObject is empty.
func (Index[Obj, Key]) QueryFromObject(Obj) Query[Obj] { return Query[Obj]{} }

// QueryFromKey is empty.
func (Index[Obj, Key]) QueryFromKey(index.Key) Query[Obj] { return Query[Obj]{} }

// Query would select objects.
type Query[Obj any] struct{}

// Table is read with a ReadTxn.
type Table[Obj any] interface {
	TableMeta
	PrimaryIndexer() Indexer[Obj]
	NumObjects(ReadTxn) int
	Initialized(ReadTxn) (bool, <-chan struct{})
	PendingInitializers(ReadTxn) []string
	Get(ReadTxn, Query[Obj]) (Obj, Revision, bool)
	GetWatch(ReadTxn, Query[Obj]) (Obj, Revision, <-chan struct{}, bool)
	List(ReadTxn, Query[Obj]) iter.Seq2[Obj, Revision]
	ListWatch(ReadTxn, Query[Obj]) (iter.Seq2[Obj, Revision], <-chan struct{})
	All(ReadTxn) iter.Seq2[Obj, Revision]
	AllWatch(ReadTxn) (iter.Seq2[Obj, Revision], <-chan struct{})
	Prefix(ReadTxn, Query[Obj]) iter.Seq2[Obj, Revision]
	PrefixWatch(ReadTxn, Query[Obj]) (iter.Seq2[Obj, Revision], <-chan struct{})
	Changes(WriteTxn) (ChangeIterator[Obj], error)
}

// RWTable is also written, with a WriteTxn.
type RWTable[Obj any] interface {
	Table[Obj]
	ToTable() Table[Obj]
	RegisterInitializer(WriteTxn, string) func(WriteTxn)
	Insert(WriteTxn, Obj) (Obj, bool, error)
	Modify(WriteTxn, Obj, func(before, after Obj) Obj) (Obj, bool, error)
	Delete(WriteTxn, Obj) (Obj, bool, error)
}

// Change is one object that changed.
type Change[Obj any] struct {
	Object   Obj
	Revision Revision
	Deleted  bool
}

// ChangeIterator follows a table.
type ChangeIterator[Obj any] interface {
	Next(ReadTxn) (iter.Seq2[Change[Obj], Revision], <-chan struct{})
}

// DB would hold tables.
type DB struct{}

// New panics.
func New() *DB { panic(absent) }

// NewHandle panics.
func (*DB) NewHandle(string) *DB { panic(absent) }

// ReadTxn panics.
func (*DB) ReadTxn() ReadTxn { panic(absent) }

// WriteTxn panics.
func (*DB) WriteTxn(...TableMeta) WriteTxn { panic(absent) }

// NewTable panics.
func NewTable[Obj any](*DB, TableName, Indexer[Obj], ...Indexer[Obj]) (RWTable[Obj], error) {
	panic(absent)
}

// Observable panics.
func Observable[Obj any](*DB, Table[Obj]) stream.Observable[Change[Obj]] { panic(absent) }
