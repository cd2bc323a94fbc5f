package kvstoretest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore"
)

// put writes keys below the fixture's prefix in one revision: "name=value", or
// "name" alone for a deletion.
func (f fixture) apply(ops ...kvstore.Op) {
	f.t.Helper()
	for i := range ops {
		ops[i].Key = f.Prefix + ops[i].Key
	}
	if err := f.Store.Apply(f.ctx, ops); err != nil {
		f.t.Fatalf("apply %d operations: %v", len(ops), err)
	}
}

func put(key, value string) kvstore.Op { return kvstore.Op{Key: key, Value: []byte(value)} }

func del(key string) kvstore.Op { return kvstore.Op{Key: key, Delete: true} }

// page reads a page of everything below the prefix.
func (f fixture) page(start string, limit, revision int64) kvstore.Range {
	f.t.Helper()
	return f.read(f.Prefix+start, kvstore.PrefixEnd(f.Prefix), limit, revision)
}

func (f fixture) read(start, end string, limit, revision int64) kvstore.Range {
	f.t.Helper()
	r, err := f.Reader.Range(f.ctx, start, end, limit, revision)
	if err != nil {
		f.t.Fatalf("range %q to %q at revision %d: %v", start, end, revision, err)
	}
	return r
}

// text prints a page: "name=value" in the order of the reply.
func (f fixture) text(kvs []kvstore.KV) []string {
	out := []string{}
	for _, kv := range kvs {
		out = append(out, kv.Key[len(f.Prefix):]+"="+string(kv.Value))
	}
	return out
}

// changes prints changes: "name=value" or "-name".
func (f fixture) changes(changes []kvstore.Change) []string {
	out := []string{}
	for _, c := range changes {
		if c.Deleted {
			out = append(out, "-"+c.Key[len(f.Prefix):])
		} else {
			out = append(out, f.text([]kvstore.KV{c.KV})...)
		}
	}
	return out
}

func (f fixture) equal(what string, got, want []string) {
	f.t.Helper()
	if !slices.Equal(got, want) {
		f.t.Fatalf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// set is the content of a prefix as a consumer of changes has it.
type set map[string]string

func (s set) apply(changes []kvstore.Change) {
	for _, c := range changes {
		if c.Deleted {
			delete(s, c.Key)
		} else {
			s[c.Key] = string(c.Value)
		}
	}
}

// content reads everything below the prefix, from the store itself.
func (f fixture) content() set {
	f.t.Helper()
	r, err := f.Store.Range(f.ctx, f.Prefix, kvstore.PrefixEnd(f.Prefix), 0, 0)
	if err != nil || r.More {
		f.t.Fatalf("range everything: %v (more: %t)", err, r.More)
	}
	all := set{}
	for _, kv := range r.KVs {
		all[kv.Key] = string(kv.Value)
	}
	return all
}

func (f fixture) same(what string, got, want set) {
	f.t.Helper()
	if !maps.Equal(got, want) {
		f.t.Fatalf("%s: got %d keys, want %d: %s", what, len(got), len(want), difference(got, want))
	}
}

func difference(got, want set) string {
	for key, value := range want {
		if got[key] != value {
			return fmt.Sprintf("key %q is %q instead of %q", key, got[key], value)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			return fmt.Sprintf("key %q should not be there", key)
		}
	}
	return "none"
}
