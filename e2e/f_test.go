package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/clustermesh/clustermesh/e2e/internal/pki"
)

// refusalLimit bounds one attempt of an intruder.
const refusalLimit = 5 * time.Second

// intruder is a client that must not get in.
type intruder struct {
	name   string
	certs  []tls.Certificate
	reason string // label of the metric and part of the log line
}

// checkIntruders: certificates that mean nothing here are refused, with a log
// line and a metric that say why.
func checkIntruders(t *testing.T, w *world) {
	east := w.clusters[0].export
	for _, who := range w.intruders(t) {
		t.Run(strings.ReplaceAll(who.name, " ", "_"), func(t *testing.T) {
			metric := fmt.Sprintf(`clustermesh_gateway_handshake_failures_total{reason="%s"}`, who.reason)
			before, lines := readMetric(t, east.http, metric), len(readLog(east.Process))
			if err := w.tryGet(t, east, who.certs); err == nil {
				t.Fatal("the gateway answered")
			}
			requireRefusal(t, east, who.reason, metric, before, lines)
		})
	}
	t.Run("plain_text", func(t *testing.T) {
		metric := `clustermesh_gateway_handshake_failures_total{reason="not TLS"}`
		before, lines := readMetric(t, east.http, metric), len(readLog(east.Process))
		c, err := net.DialTimeout("tcp", east.listen, refusalLimit)
		must(t, err)
		defer c.Close()
		_, err = c.Write([]byte("GET / HTTP/1.1\r\nHost: mesh\r\n\r\n"))
		must(t, err)
		requireRefusal(t, east, "not TLS", metric, before, lines)
	})
}

func (w *world) intruders(t *testing.T) []intruder {
	t.Helper()
	own, err := pki.Load(w.cert("ca.crt"), w.cert("ca.key"))
	must(t, err)
	other, err := pki.New()
	must(t, err)
	issue := func(a *pki.Authority, name string, start time.Duration, usage x509.ExtKeyUsage) []tls.Certificate {
		c, err := a.Issue(pki.Leaf{Name: name, Start: time.Now().Add(start), Usage: usage})
		must(t, err)
		return []tls.Certificate{c}
	}
	const client = x509.ExtKeyUsageClientAuth
	return []intruder{
		{"another authority", issue(other, "remote-west", -time.Minute, client), "unknown authority"},
		{"expired", issue(own, "remote-west", -2*time.Hour, client), "expired"},
		{"not valid yet", issue(own, "remote-west", time.Hour, client), "expired"},
		{"unknown name", issue(own, "admin", -time.Minute, client), "wrong name"},
		{"root", issue(own, "root", -time.Minute, client), "wrong name"},
		{"agent of another cluster", issue(own, "local-west", -time.Minute, client), "wrong name"},
		{"server certificate", issue(own, "remote-west", -time.Minute, x509.ExtKeyUsageServerAuth), "wrong usage"},
		{"no certificate", nil, "no certificate"},
	}
}

// tlsTo is a client's TLS configuration towards our gateways.
func (w *world) tlsTo(t *testing.T, certs []tls.Certificate) *tls.Config {
	t.Helper()
	ca, err := os.ReadFile(w.cert("ca.crt"))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if len(certs) > 0 { // as it is, whatever authorities the server asks for
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return c
}

// tryGet reads the cluster's configuration as a client with the certificates.
func (w *world) tryGet(t *testing.T, a *apiserver, certs []tls.Certificate) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(live(t), refusalLimit)
	defer cancel()
	conn, err := grpc.NewClient(a.listen, grpc.WithTransportCredentials(credentials.NewTLS(w.tlsTo(t, certs))))
	must(t, err)
	defer conn.Close()
	_, err = pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("cilium/cluster-config/east")})
	return err
}

func requireRefusal(t *testing.T, a *apiserver, reason, metric string, before float64, logged int) {
	t.Helper()
	deadline := time.Now().Add(refusalLimit)
	for {
		counted := readMetric(t, a.http, metric) > before
		fresh := readLog(a.Process)[logged:]
		said := strings.Contains(fresh, "handshake failed") && strings.Contains(fresh, reason)
		if counted && said {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: counted in %s: %v; logged: %v:\n%s", refusalLimit, metric, counted, said, fresh)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// readMetric returns the value of a metric line, 0 when it is absent.
func readMetric(t *testing.T, address, name string) float64 {
	t.Helper()
	text, err := fetch(address, "/metrics")
	must(t, err)
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text)
	if line == nil {
		return 0
	}
	value, err := strconv.ParseFloat(line[1], 64)
	must(t, err)
	return value
}

// readable are the calls that a reader needs; there is no other.
var readable = map[string]bool{
	"/etcdserverpb.KV/Range":           true,
	"/etcdserverpb.Watch/Watch":        true,
	"/etcdserverpb.Maintenance/Status": true,
}

// checkReadOnly: with a valid remote certificate every call of the etcd API
// but the readers' is refused and the store's revision does not move.
func checkReadOnly(t *testing.T, w *world) {
	east := w.clusters[0].export
	pair, err := tls.LoadX509KeyPair(w.cert("remote-west.crt"), w.cert("remote-west.key"))
	must(t, err)
	conn, err := grpc.NewClient(east.listen, grpc.WithTransportCredentials(credentials.NewTLS(w.tlsTo(t, []tls.Certificate{pair}))))
	must(t, err)
	defer conn.Close()
	before := revision(t, conn)
	refused := readMetric(t, east.http, `clustermesh_gateway_refusals_total{reason="unimplemented"}`)
	calls := writeCalls()
	if len(calls) < 30 {
		t.Fatalf("only %d calls known: %v", len(calls), calls)
	}
	for _, call := range calls {
		requireDenied(t, conn, call)
	}
	requireWritesFail(t, w, east, pair)
	if after := revision(t, conn); after != before {
		t.Errorf("the store's revision moved from %d to %d, heartbeats not counted", before, after)
	}
	if now := readMetric(t, east.http, `clustermesh_gateway_refusals_total{reason="unimplemented"}`); now < refused+float64(len(calls)) {
		t.Errorf("the metric of refusals went from %v to %v after %d calls", refused, now, len(calls))
	}
	if log := readLog(east.Process); !strings.Contains(log, "etcdserverpb.KV/Put") {
		t.Error("the log does not name the refused call")
	}
	requireHidden(t, conn)
}

// revision is the store's revision without the heartbeats and markers that it
// includes.
func revision(t *testing.T, conn *grpc.ClientConn) int64 {
	t.Helper()
	got, err := pb.NewKVClient(conn).Range(live(t), &pb.RangeRequest{Key: []byte("cilium/.heartbeat")})
	must(t, err)
	if len(got.Kvs) != 1 {
		t.Fatalf("the heartbeat is not there: %v", got)
	}
	at := got.Header.Revision
	marked, err := pb.NewKVClient(conn).Range(live(t), &pb.RangeRequest{Key: []byte("clustermesh/markers/east/v1"), Revision: at})
	must(t, err)
	if len(marked.Kvs) != 1 {
		t.Fatalf("the marker is not there: %v", marked)
	}
	return at - got.Kvs[0].Version - marked.Kvs[0].Version
}

// call is one RPC.
type call struct {
	name   string
	method protoreflect.MethodDescriptor
}

// writeCalls lists every call of the etcd API that is not a reader's.
func writeCalls() []call {
	var all []call
	services := pb.File_rpc_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			name := fmt.Sprintf("/%s/%s", services.Get(i).FullName(), m.Name())
			if !readable[name] {
				all = append(all, call{name, m})
			}
		}
	}
	return all
}

func requireDenied(t *testing.T, conn *grpc.ClientConn, c call) {
	t.Helper()
	ctx, cancel := context.WithTimeout(live(t), refusalLimit)
	defer cancel()
	request, response := dynamicpb.NewMessage(c.method.Input()), dynamicpb.NewMessage(c.method.Output())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, c.name)
	must(t, err)
	_ = stream.SendMsg(request) // the verdict comes with the answer
	_ = stream.CloseSend()
	code := status.Code(stream.RecvMsg(response))
	if code != codes.Unimplemented && code != codes.PermissionDenied {
		t.Errorf("%s: %v, want Unimplemented or PermissionDenied", c.name, code)
	}
}

// requireWritesFail writes as an ordinary etcd client would.
func requireWritesFail(t *testing.T, w *world, a *apiserver, pair tls.Certificate) {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + a.listen}, TLS: w.tlsTo(t, []tls.Certificate{pair}), DialTimeout: refusalLimit})
	must(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(live(t), refusalLimit)
	defer cancel()
	key := "cilium/state/services/v1/east/rebels/rebel-base"
	_, put := client.Put(ctx, key, "{}")
	_, del := client.Delete(ctx, key)
	_, txn := client.Txn(ctx).Then(clientv3.OpPut(key, "{}")).Commit()
	_, read := client.Txn(ctx).Then(clientv3.OpGet(key)).Commit()
	_, lease := client.Grant(ctx, 60)
	_, compact := client.Compact(ctx, 1)
	_, auth := client.UserAdd(ctx, "mallory", "x")
	for name, err := range map[string]error{"put": put, "delete": del, "txn": txn, "read-only txn": read, "lease": lease, "compact": compact, "user add": auth} {
		if err == nil {
			t.Errorf("%s succeeds", name)
		}
	}
}

// requireHidden: what is for local agents only, and other clusters'
// configurations, cannot be read with a remote certificate.
func requireHidden(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	ranges := []*pb.RangeRequest{
		{Key: []byte("clustermesh/local/"), RangeEnd: []byte("clustermesh/local0")},
		{Key: []byte("cilium/cache/"), RangeEnd: []byte("cilium/cache0")},
		{Key: []byte("cilium/cluster-config/"), RangeEnd: []byte("cilium/cluster-config0")},
		{Key: []byte{0}, RangeEnd: []byte{0}},
	}
	for _, r := range ranges {
		got, err := pb.NewKVClient(conn).Range(live(t), r)
		if err == nil {
			t.Errorf("range %q to %q answers %d keys", r.Key, r.RangeEnd, len(got.Kvs))
		}
	}
}
