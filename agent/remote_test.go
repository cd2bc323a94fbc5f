package agent

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestDeletionsAreBelievedAfterALookAtTheConfiguration: one look serves all up
// to its revision; a moved source, or lost contact, ends the connection with
// nothing deleted; a cluster that is gone from its relay loses its records.
func TestDeletionsAreBelievedAfterALookAtTheConfiguration(t *testing.T) {
	east := newFakeCluster("east", 2, shape{})
	key := schema.ClusterConfigKey("east")
	var looks atomic.Int32
	east.SetFault(func(f kvstore.Fault) error {
		if f.Op == kvstore.FaultRange && f.Key == key {
			looks.Add(1)
		}
		return nil
	})
	r, conn := &remote{name: "east"}, &memoryConn{fakeCluster: east}
	config, revision, err := r.readConfig(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	said := r.announcement(config, revision)
	check := func(deleted bool, at int64, wantLooks int32, want error) {
		t.Helper()
		looks.Store(0)
		u := kvstore.Update{Changes: []kvstore.Change{{Deleted: deleted}}, Revision: at}
		if err := r.confirm(t.Context(), conn, &said, u); !errors.Is(err, want) || looks.Load() != wantLooks {
			t.Errorf("%v after %d looks, want %v after %d", err, looks.Load(), want, wantLooks)
		}
	}
	check(true, revision, 0, nil)
	east.put(schema.HeartbeatKey, []byte("1"))
	east.put(schema.HeartbeatKey, []byte("2"))
	check(false, revision+1, 0, nil)
	check(true, revision+1, 1, nil)
	check(true, revision+2, 0, nil)
	east.write(key, nil)
	check(true, revision+3, 1, nil)
	east.move(shape{mode: schema.ModeEndpointSlicesOnly})
	check(true, revision+4, 1, errMoved)
	east.down.Store(true)
	check(true, revision+5, 0, errDown)
}
