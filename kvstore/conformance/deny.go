package conformance

import (
	"context"
	"crypto/rand"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/clustermesh/clustermesh/certs"
)

const denyRemedy = "restrict the role of the certificate's name to what etcdinit grants; put clustermesh-apiserver's gateway in front of a bare etcd"

func denyChecks() []Check {
	return []Check{{
		ID: "deny-config-list", Group: "denying", Title: "remote clients may not list the announcements of all clusters", Needs: []string{"etcd-api", "client-name"},
		Why:    "clients do not notice, but a remote cluster learns which others are in the mesh",
		Remedy: denyRemedy,
		run:    checkConfigList,
	}, {
		ID: "deny-other-keys", Group: "denying", Title: "other keys may not be listed", Needs: []string{"etcd-api"},
		Why:    "clients do not notice, but a remote cluster reads what is not meant for it",
		Remedy: denyRemedy,
		run: func(ctx context.Context, s *session) finding {
			return s.checkDenied(ctx, keyRange{"\x00", "\x00"}, "all keys")
		},
	}}
}

func checkConfigList(ctx context.Context, s *session) finding {
	if s.role.Kind == certs.Local {
		return skip("a cluster's own clients may")
	}
	r := prefixRange("cilium/cluster-config/")
	return s.checkDenied(ctx, r, r.String())
}

func (s *session) checkDenied(ctx context.Context, r keyRange, what string) finding {
	reply, err := s.ask(ctx, r, 1, 0)
	switch {
	case err == nil:
		return fail("listing %s was answered with %s", what, count(len(reply.Kvs), "key"))
	case refused(err):
		return pass("listing %s: %s", what, text(err))
	}
	return fail("listing %s was not refused: %s", what, text(err))
}

const writeWhy = "clients do not notice, but whoever holds a remote cluster's certificate can change what this cluster publishes"

func writeChecks() []Check {
	probe := func(id, title string, write func(ctx context.Context, s *session, key []byte) error) Check {
		return Check{
			ID: id, Group: "denying", Title: title, Needs: []string{"etcd-api"}, Why: writeWhy, Remedy: denyRemedy,
			run: func(ctx context.Context, s *session) finding { return s.checkWrite(ctx, write) },
		}
	}
	return []Check{
		probe("deny-put", "a put is refused", probePut),
		probe("deny-delete", "a deletion is refused", probeDelete),
		probe("deny-txn", "a transaction with writes is refused", probeTxn),
		probe("deny-lease", "a lease is refused", probeLease),
	}
}

func (s *session) checkWrite(ctx context.Context, write func(context.Context, *session, []byte) error) finding {
	if !s.opts.ProbeWrites {
		return skip("not asked for")
	}
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	// Nobody has this key, and below it lies nothing that a client would read.
	key := s.entries().start + "conformance-probe/" + strings.ToLower(rand.Text())
	err := write(ctx, s, []byte(key))
	switch {
	case err == nil:
		return fail("it was allowed")
	case refused(err):
		return pass("%s", text(err))
	}
	return fail("it was refused for its form only: %s", text(err))
}

// probePut has no effect: a put that keeps the value fails where there is no key.
func probePut(ctx context.Context, s *session, key []byte) error {
	_, err := s.kv.Put(ctx, &etcdserverpb.PutRequest{Key: key, IgnoreValue: true})
	return err
}

func probeDelete(ctx context.Context, s *session, key []byte) error {
	_, err := s.kv.DeleteRange(ctx, &etcdserverpb.DeleteRangeRequest{Key: key})
	return err
}

// probeTxn has no effect: no key has version -1.
func probeTxn(ctx context.Context, s *session, key []byte) error {
	_, err := s.kv.Txn(ctx, &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{Key: key, Target: etcdserverpb.Compare_VERSION, TargetUnion: &etcdserverpb.Compare_Version{Version: -1}}},
		Success: []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: key}}}},
	})
	return err
}

// probeLease has no effect: etcd grants no lease of more than 9,000,000,000 s
// (lease.MaxLeaseTTL).
func probeLease(ctx context.Context, s *session, _ []byte) error {
	_, err := etcdserverpb.NewLeaseClient(s.conn).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{TTL: 9_000_000_001})
	return err
}
