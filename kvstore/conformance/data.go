package conformance

import (
	"context"
	"fmt"
	"net/netip"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

func dataChecks() []Check {
	var checks []Check
	for _, k := range kinds() {
		checks = append(checks, Check{
			ID: "data-" + k.String(), Group: "data", Title: "every entry of " + k.String() + " is valid",
			Needs:  []string{"page-order", "config-id-range"},
			Why:    "the client logs the entry and goes on without it; an older value of it stays until the next reconnect",
			Remedy: "correct what the entry is made of in CLUSTER, or upgrade the older side",
			run:    func(ctx context.Context, s *session) finding { return s.checkData(ctx, k) },
		})
	}
	return append(checks, Check{
		ID: "data-ip-identities", Group: "data", Title: "every address has an identity that is published", Needs: []string{"data-ip", "data-identities"},
		Why:    "the client cannot tell whose address it is: policies that select by labels do not match",
		Remedy: "check CLUSTER's identities and its apiserver's log",
		run:    checkIdentities,
	}, Check{
		ID: "data-ip-hosts", Group: "data", Title: "every address is on a node that is published", Needs: []string{"data-ip", "data-nodes"},
		Why:    "the client has no tunnel, route or key to the address's host: traffic to it is lost",
		Remedy: "check CLUSTER's nodes and its apiserver's log",
		run:    checkHosts,
	})
}

// content is what entries of one kind say that those of another depend on.
type content struct {
	identities map[uint32]bool
	hosts      map[netip.Addr]bool
	used       map[uint32]string // identity to a key that has it
	usedHosts  map[string]string // host to a key that has it
	slices     schema.SliceCodec
}

// reader decodes one entry.
type reader func(s *session, key string, value []byte) error

func readerOf(k schema.Kind) reader {
	switch k {
	case schema.KindService:
		return readService
	case schema.KindNode:
		return readNode
	case schema.KindIdentity:
		return readIdentity
	case schema.KindIP:
		return readIP
	case schema.KindEndpointSlice:
		return readSlice
	}
	return readExport
}

// checkData decodes every entry of a kind as this product's own agents do; they
// refuse what Cilium's refuse.
func (s *session) checkData(ctx context.Context, k schema.Kind) finding {
	if !s.publishes(k) {
		return skip("the cluster does not announce this kind")
	}
	read := readerOf(k)
	good, bad, first := 0, 0, ""
	s.content.begin(k)
	_, err := s.list(ctx, prefixRange(schema.WatchPrefix(k, s.target.Cluster, s.cached())), pageLimit, func(kv *mvccpb.KeyValue) {
		if err := read(s, string(kv.Key), kv.Value); err == nil {
			good++
		} else if bad++; bad == 1 {
			first = fmt.Sprintf("%s: %v", kv.Key, err)
		}
	})
	switch {
	case err != nil:
		return fail("list: %v", err)
	case bad > 0:
		return fail("%d of %d are not; first %s", bad, good+bad, first)
	}
	return pass("%d", good)
}

func (c *content) begin(k schema.Kind) {
	switch k {
	case schema.KindNode:
		c.hosts = map[netip.Addr]bool{}
	case schema.KindIdentity:
		c.identities = map[uint32]bool{}
	case schema.KindIP:
		c.used, c.usedHosts = map[uint32]string{}, map[string]string{}
	}
}

func readService(s *session, key string, value []byte) error {
	_, err := schema.DecodeService(s.source(), key, value, schema.DefaultLimits())
	return err
}

func readNode(s *session, key string, value []byte) error {
	n, err := schema.DecodeNode(s.source(), key, value, schema.DefaultLimits())
	if err != nil {
		return err
	}
	s.seenNode(n)
	for _, a := range n.IPAddresses {
		if addr, err := netip.ParseAddr(a.IP); err == nil {
			s.content.hosts[addr.Unmap()] = true
		}
	}
	return nil
}

func readIdentity(s *session, key string, value []byte) error {
	i, err := schema.DecodeIdentity(s.source(), s.maxClusters(), key, value, schema.DefaultLimits())
	if err == nil {
		s.content.identities[i.ID] = true
	}
	return err
}

func readIP(s *session, key string, value []byte) error {
	e, err := schema.DecodeIPEntry(s.source(), s.maxClusters(), key, value, schema.DefaultLimits())
	if err == nil {
		s.content.used[e.ID], s.content.usedHosts[e.HostIP] = key, key
	}
	return err
}

func readSlice(s *session, key string, value []byte) error {
	_, err := s.content.slices.Decode(s.source(), key, value, schema.DefaultLimits())
	return err
}

func readExport(s *session, key string, value []byte) error {
	_, err := schema.DecodeServiceExport(s.source(), key, value, schema.DefaultLimits())
	return err
}

// reserved identities mean the same in every cluster and are not published.
const reserved = 256

func checkIdentities(_ context.Context, s *session) finding {
	for id, key := range s.content.used {
		if id >= reserved && !s.content.identities[id] {
			return fail("%s has identity %d", key, id)
		}
	}
	return pass("%s in use, %d published", count(len(s.content.used), "identity"), len(s.content.identities))
}

func checkHosts(_ context.Context, s *session) finding {
	for host, key := range s.content.usedHosts {
		if addr, err := netip.ParseAddr(host); err == nil && !s.content.hosts[addr.Unmap()] {
			return fail("%s is on host %s", key, host)
		}
	}
	return pass("%s in use, %s of nodes published", count(len(s.content.usedHosts), "host"), count(len(s.content.hosts), "address"))
}
