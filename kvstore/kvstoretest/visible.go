package kvstoretest

import (
	"context"
	"errors"
	"fmt"

	"github.com/clustermesh/clustermesh/kvstore"
)

// testToldIsListed: whoever lists after being told of a change finds it.
func testToldIsListed(f fixture) {
	const writes = 1000
	first := f.page("", 0, 0)
	ended := make(chan error, 1)
	go func() { ended <- f.writeMany(f.ctx, writes) }()
	seen := 0
	err := f.Reader.Watch(f.ctx, f.Prefix, kvstore.PrefixEnd(f.Prefix), first.Revision+1, func(c kvstore.Changes) error {
		r, err := f.Reader.Range(f.ctx, f.Prefix, kvstore.PrefixEnd(f.Prefix), 1, 0)
		if err != nil {
			return err
		}
		if r.Revision < c.Revision {
			return fmt.Errorf("told of revision %d, then listed revision %d", c.Revision, r.Revision)
		}
		if seen += len(c.Changes); seen == writes {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		f.t.Fatalf("after %d of %d changes: %v", seen, writes, err)
	}
	if err := <-ended; err != nil {
		f.t.Fatal(err)
	}
}

func (f fixture) writeMany(ctx context.Context, n int) error {
	for i := range n {
		if err := f.Store.Apply(ctx, []kvstore.Op{{Key: f.Prefix + "k", Value: fmt.Append(nil, i)}}); err != nil {
			return err
		}
	}
	return nil
}
