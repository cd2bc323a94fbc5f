package conformance

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// violation spoils one thing of a healthy world. The check of its name must
// then fail, what builds on that be skipped, and everything else pass as
// before, except for what the violation names itself.
type violation struct {
	check  string
	spoil  func(*world)
	except map[string]Outcome
}

func TestEveryViolationIsFound(t *testing.T) {
	var all []violation
	for _, group := range [][]violation{
		networkViolations(), tlsViolations(), accessViolations(), configViolations(), grantViolations(), writeViolations(),
		pageViolations(), watchViolations(), livenessViolations(), canaryViolations(), dataViolations(), headerViolations(),
	} {
		all = append(all, group...)
	}
	for _, c := range Checks() {
		n := 0
		for _, v := range all {
			if v.check == c.ID {
				n++
			}
		}
		if n == 0 {
			t.Errorf("no violation of %s", c.ID)
		}
	}
	for i, v := range all {
		t.Run(v.check, func(t *testing.T) {
			t.Parallel()
			name := "east"
			if v.check == "cluster-name" {
				name = "default"
			}
			w := newWorld(t, name)
			v.spoil(w)
			w.open()
			want := map[string]Outcome{all[i].check: Fail}
			for id, o := range v.except {
				want[id] = o
			}
			w.compare(expect(want))
		})
	}
}

func networkViolations() []violation {
	return []violation{
		{check: "resolve", spoil: func(w *world) { w.target.Endpoint = strings.Replace(w.target.Endpoint, "east.", "east..", 1) }},
		{check: "resolve", spoil: func(w *world) { w.target.Endpoint = strings.Replace(w.target.Endpoint, "https", "http", 1) }},
		{check: "connect", spoil: func(w *world) {
			closed, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				w.t.Fatal(err)
			}
			closed.Close()
			_, port, _ := net.SplitHostPort(closed.Addr().String())
			w.target.Endpoint = "https://" + net.JoinHostPort(host, port)
		}},
		{check: "client-files", spoil: func(w *world) { w.target.KeyFile = w.target.CAFile }},
		{check: "client-files", spoil: func(w *world) { w.target.CAFile = w.target.KeyFile }},
		{check: "client-validity", spoil: func(w *world) {
			w.ca.files(&w.target, w.ca.issue("remote", x509.ExtKeyUsageClientAuth, expired))
		}},
		{check: "client-validity", spoil: func(w *world) { w.ca.files(&w.target, w.ca.issue("remote", x509.ExtKeyUsageServerAuth)) }},
		{check: "client-name", spoil: func(w *world) { w.ca.files(&w.target, w.ca.issue("somebody", x509.ExtKeyUsageClientAuth)) }},
	}
}

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

func tlsViolations() []violation {
	return []violation{
		{check: "tls-handshake", spoil: func(w *world) { w.front.silent = true }},
		{check: "tls-version", spoil: func(w *world) { w.front.tls.MinVersion, w.front.tls.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
		{check: "tls-alpn", spoil: func(w *world) { w.front.tls.NextProtos = nil }},
		{check: "tls-chain", spoil: func(w *world) {
			w.serveCertificate(newAuthority(w.t).issue("x", x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) { c.DNSNames = []string{host} }))
		}},
		{check: "tls-name", spoil: func(w *world) {
			w.serveCertificate(w.serverCertificate(func(c *x509.Certificate) { c.DNSNames = []string{"west.mesh.cilium.io"} }))
		}},
		{check: "tls-validity", spoil: func(w *world) { w.serveCertificate(w.serverCertificate(expired)) }},
		{check: "tls-usage", spoil: func(w *world) {
			w.serveCertificate(w.serverCertificate(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
		}},
		{check: "agent", spoil: func(w *world) { w.front.tls.MaxVersion = tls.VersionTLS12 }},
	}
}

func accessViolations() []violation {
	return []violation{
		{check: "refuses-plain-text", spoil: func(w *world) { w.front.plain = true }},
		{check: "refuses-no-certificate", spoil: func(w *world) { w.front.tls.ClientAuth = tls.VerifyClientCertIfGiven }},
		{check: "refuses-foreign-ca", spoil: func(w *world) { w.front.tls.ClientAuth = tls.RequireAnyClientCert }},
		{check: "client-accepted", spoil: func(w *world) { w.front.tls.ClientCAs = newAuthority(w.t).pool() }},
		{check: "client-accepted", spoil: func(w *world) {
			w.front.tls.ClientCAs, w.front.tls.MaxVersion = newAuthority(w.t).pool(), tls.VersionTLS12
		}},
		{check: "etcd-api", spoil: func(w *world) { w.server.noKV = true }},
		{check: "ping-answered", spoil: func(w *world) { w.front.pingless, w.opts.Timeout = true, 6*time.Second }},
		{check: "ping-tolerated", spoil: func(w *world) { w.server.minPing = time.Hour }},
	}
}

func configViolations() []violation {
	key := schema.ClusterConfigKey("east")
	return []violation{
		{check: "cluster-name", spoil: func(*world) {}},
		{check: "config-exists", spoil: func(w *world) { w.content[key] = nil }},
		{check: "config-json", spoil: func(w *world) { w.content[key] = []byte("{") }},
		{check: "config-id-range", spoil: func(w *world) { w.config.ID = 0 }},
		{check: "config-id-range", spoil: func(w *world) { w.config.ID = 300 }},
		{check: "config-id-own", spoil: func(w *world) { w.opts.OwnID = 7 }},
		{check: "config-max-clusters", spoil: func(w *world) { w.config.Capabilities.MaxConnectedClusters = 300 }},
		{check: "config-max-clusters", spoil: func(w *world) { w.config.Capabilities.MaxConnectedClusters, w.opts.MaxClusters = 511, 255 }},
		{
			check: "config-max-clusters", spoil: func(w *world) { w.opts.MaxClusters = 511 },
			// The identities are numbered for 255.
			except: map[string]Outcome{"data-identities": Fail, "data-ip": Fail},
		},
		{check: "config-export-mode", spoil: func(w *world) { w.config.Capabilities.EndpointSlicesExportMode = "everything" }},
		{
			check: "config-cached", spoil: func(w *world) { w.config.Capabilities.Cached = true },
			// What is looked for below the wrong prefix may not even be read.
			except: map[string]Outcome{"read-state": Fail},
		},
	}
}

func grantViolations() []violation {
	grant := func(r keyRange) func(*world) {
		return func(w *world) { w.server.granted = append(w.server.granted, r) }
	}
	return []violation{
		{check: "read-config", spoil: func(w *world) { w.server.revoke(schema.ClusterConfigKey("east")) }},
		{check: "read-heartbeat", spoil: func(w *world) { w.server.revoke(schema.HeartbeatKey) }},
		{check: "read-heartbeat", spoil: func(w *world) {
			// The single key is not what clients ask for.
			w.server.revoke(schema.HeartbeatKey)
			w.server.granted = append(w.server.granted, keyRange{start: schema.HeartbeatKey})
		}},
		{check: "read-synced", spoil: func(w *world) { w.server.revoke(schema.CanaryPrefix("east")) }},
		{check: "read-state", spoil: func(w *world) { w.server.revoke("cilium/state/") }},
		{check: "watch-ranges", spoil: func(w *world) {
			w.server.watchable = func(r keyRange) bool { return r.start != "cilium/state/" }
		}},
		{check: "deny-config-list", spoil: grant(prefixRange("cilium/cluster-config/"))},
		{check: "deny-other-keys", spoil: grant(keyRange{"\x00", "\x00"})},
	}
}

func writeViolations() []violation {
	var all []violation
	for _, kind := range []string{"put", "delete", "txn", "lease"} {
		all = append(all, violation{check: "deny-" + kind, spoil: func(w *world) { w.server.writable = kind }})
	}
	return all
}

func pageViolations() []violation {
	spoil := func(change func(w *world, q *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error)) func(*world) {
		return func(w *world) {
			w.server.onRange = func(q *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) {
				return change(w, q, r, err)
			}
		}
	}
	return []violation{
		{check: "page-order", spoil: spoil(func(_ *world, _ *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) {
			slices.Reverse(r.GetKvs())
			return r, err
		})},
		{check: "page-limit", spoil: spoil(func(w *world, q *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) {
			if err != nil {
				return r, err
			}
			return w.server.read(w.t.Context(), keyRange{string(q.Key), string(q.RangeEnd)}, 0, q.Revision)
		})},
		{check: "page-more", spoil: spoil(func(_ *world, _ *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) {
			if r != nil {
				r.More = false
			}
			return r, err
		}), except: map[string]Outcome{"watch-deletes": Fail}}, // what was not listed seems to be gone
		{check: "page-revision", spoil: spoil(func(w *world, q *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) {
			if err != nil {
				return r, err
			}
			return w.server.read(w.t.Context(), keyRange{string(q.Key), string(q.RangeEnd)}, q.Limit, 0)
		})},
		{check: "future-revision", spoil: spoil(func(w *world, q *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) {
			if q.Revision > w.server.store.Revision() {
				return w.server.read(w.t.Context(), keyRange{string(q.Key), string(q.RangeEnd)}, q.Limit, 0)
			}
			return r, err
		})},
		{check: "compacted-range", spoil: spoil(func(_ *world, q *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) {
			if q.Revision == 1 {
				return nil, status.Error(codes.NotFound, "gone")
			}
			return r, err
		})},
	}
}

func watchViolations() []violation {
	spoil := func(change func(keyRange, *pb.WatchResponse)) func(*world) {
		return func(w *world) { w.server.onWatch = change }
	}
	return []violation{
		{
			check: "watch-start", spoil: func(w *world) {
				w.opts.Timeout = 6 * time.Second
				w.beat = nil // it would look like the change asked for
				w.server.onCreate = func(q *pb.WatchCreateRequest) { q.StartRevision = 0 }
			},
			// No history can be seen then, and no heartbeat comes.
			except: map[string]Outcome{"compacted-watch": Skip, "watch-deletes": Skip, "heartbeat-put": Fail},
		},
		{
			check: "compacted-watch", spoil: spoil(func(_ keyRange, r *pb.WatchResponse) {
				if r.CompactRevision > 0 {
					r.CompactRevision, r.CancelReason = 0, "gone"
				}
			}),
			// Where the history that is kept begins is not to be learnt.
			except: map[string]Outcome{"watch-range": Fail},
		},
		{check: "watch-range", spoil: spoil(func(r keyRange, reply *pb.WatchResponse) {
			if len(reply.Events) > 0 && r.start == "cilium/state/" {
				reply.Events = append(reply.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("cilium/.heartbeat"), ModRevision: reply.Header.Revision}})
			}
		})},
		{check: "watch-order", spoil: spoil(func(_ keyRange, reply *pb.WatchResponse) { slices.Reverse(reply.Events) })},
		{check: "watch-deletes", spoil: spoil(func(_ keyRange, reply *pb.WatchResponse) {
			reply.Events = slices.DeleteFunc(reply.Events, func(e *mvccpb.Event) bool { return e.Type == mvccpb.Event_DELETE })
		})},
		{check: "watch-deletes", spoil: spoil(func(_ keyRange, reply *pb.WatchResponse) {
			for _, e := range reply.Events { // as a put of nothing
				e.Type = mvccpb.Event_PUT
			}
		})},
		{check: "watch-open", spoil: func(w *world) {
			w.server.onOpen = func(r keyRange) error {
				if r.end == "" && strings.HasPrefix(r.start, "cilium/cluster-config/") {
					return status.Error(codes.Unavailable, "idle")
				}
				return nil
			}
		}},
	}
}

func livenessViolations() []violation {
	return []violation{
		{check: "heartbeat-recent", spoil: func(w *world) { w.beat = func() time.Time { return time.Now().Add(-time.Hour) } }},
		{check: "clock-skew", spoil: func(w *world) { w.beat = func() time.Time { return time.Now().Add(time.Hour) } }},
		{check: "heartbeat-put", spoil: func(w *world) { w.beat = nil }},
	}
}

func canaryViolations() []violation {
	all := []violation{
		{check: "canary-spelling", spoil: func(w *world) {
			w.content[schema.CanaryKey(schema.KindIdentity, "east", false)+"/id"] = []byte("2026-11-21T00:35:12Z")
		}},
	}
	for _, k := range kinds() {
		all = append(all, violation{check: "canary-" + k.String(), spoil: func(w *world) { w.content[schema.CanaryKey(k, "east", false)] = nil }})
	}
	return all
}

func dataViolations() []violation {
	put := func(check, key, value string) violation {
		return violation{check: check, spoil: func(w *world) { w.content[key] = []byte(value) }}
	}
	stray, elsewhere := ipEntry(), ipEntry()
	stray.IP, stray.ID = "10.7.0.2", 7<<16+500
	elsewhere.IP, elsewhere.HostIP = "10.7.0.3", "192.0.2.99"
	other := service("west")
	foreign := service("east")
	foreign.ClusterID = 8
	return []violation{
		put("data-services", schema.ServiceKey("east", "shop", "x"), "{"),
		put("data-services", schema.ServiceKey("east", "shop", "web"), string(other.Encode())),
		put("data-services", schema.ServiceKey("east", "shop", "web"), string(foreign.Encode())),
		put("data-services", schema.ServiceKey("east", "other", "web"), string(service("east").Encode())),
		put("data-nodes", schema.NodeKey("east", "n2"), `{"Name":"n3","Cluster":"east","ClusterID":7}`),
		put("data-identities", schema.IdentityKey(8<<16), string(identity("east", 0).Encode())),
		put("data-identities", schema.IdentityKey(7<<16), string(identity("west", 0).Encode())),
		put("data-ip", schema.IPKey("10.7.0.9"), string(ipEntry().Encode())),
		put("data-endpointslices", schema.EndpointSliceKey("east", "shop", "web-2"), "{}"),
		put("data-serviceexports", schema.ServiceExportKey("east", "shop", "db"), `{"cluster":"east","namespace":"shop","name":"db"}`),
		put("data-ip-identities", schema.IPKey(stray.IP), string(stray.Encode())),
		put("data-ip-hosts", schema.IPKey(elsewhere.IP), string(elsewhere.Encode())),
	}
}

func headerViolations() []violation {
	other := func(what string, id uint64) func(*world) {
		return func(w *world) {
			w.server.id = func(of string) uint64 {
				if of == what {
					return id
				}
				return standinID
			}
		}
	}
	key := schema.ClusterConfigKey("east")
	return []violation{
		{check: "header-unary", spoil: other(key, 0)},
		{check: "header-constant", spoil: other(key, standinID+1)},
		{check: "header-stream", spoil: other("watch", standinID+1)},
		{check: "header-stream", spoil: other("watch", 0)},
	}
}
