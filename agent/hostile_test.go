package agent

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
)

// pki is a CA with a client certificate of cluster home.
type pki struct {
	dir    string
	client certs.Files
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{dir: filepath.Join(t.TempDir(), "pki")}
	if err := certs.InitCA(p.dir, certs.CAOptions{}); err != nil {
		t.Fatal(err)
	}
	p.client = p.issue(t, certs.IssueRequest{Kind: certs.Remote, Cluster: "home"})
	return p
}

func (p *pki) issue(t *testing.T, r certs.IssueRequest) certs.Files {
	t.Helper()
	f, err := certs.Issue(p.dir, r)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// server is the configuration of a cluster's server.
func (p *pki) server(t *testing.T, cluster string) *tls.Config {
	t.Helper()
	f := p.issue(t, certs.IssueRequest{Kind: certs.Server, Cluster: cluster})
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert}
}

// file is east's cluster file if DNS led to the given address.
func (p *pki) file(address string) clusterfile.File {
	_, port, _ := net.SplitHostPort(address)
	return clusterfile.File{
		Endpoints: []string{"https://east.mesh.cilium.io:" + port}, TrustedCAFile: p.client.CA, CertFile: p.client.Cert, KeyFile: p.client.Key,
		HostAliases: []clusterfile.HostAlias{{Hostname: "east.mesh.cilium.io", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}},
	}
}

func (p *pki) dial(t *testing.T, file clusterfile.File) (connection, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return dialTLS(slog.New(slog.DiscardHandler))(ctx, "east", file)
}

// serve accepts TLS connections of HTTP/2 and leaves them to answer.
func (p *pki) serve(t *testing.T, cluster string, answer func(net.Conn)) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", p.server(t, cluster))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ended := make(chan struct{})
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				stop := context.AfterFunc(contextOf(ended), func() { conn.Close() })
				defer stop()
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() == nil {
					answer(conn)
				}
			})
		}
	})
	t.Cleanup(func() { listener.Close(); close(ended); all.Wait() })
	return listener.Addr().String()
}

// contextOf ends with a channel.
func contextOf(ended <-chan struct{}) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-ended; cancel() }()
	return ctx
}

// serveGRPC answers every call with the given bytes over and over, or, without
// bytes, with an error. sent counts them.
func (p *pki) serveGRPC(t *testing.T, cluster string, body []byte) (address string, sent func() int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	s := &http.Server{TLSConfig: p.server(t, cluster), ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		if body == nil {
			w.Header().Set("Grpc-Status", "12")
			return
		}
		for range 1 << 11 { // 2 GiB with a body of a MiB
			k, err := w.Write(body)
			n.Add(int64(k))
			if err != nil || r.Context().Err() != nil {
				return
			}
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { s.Close(); <-done })
	return listener.Addr().String(), n.Load
}

// frame is an HTTP/2 frame, RFC 9113 section 4.1.
func frame(kind, flags byte, stream uint32, payload ...byte) []byte {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// hostileAnswers are what a server may do once the handshake is over.
func hostileAnswers() map[string]func(net.Conn) {
	settings := frame(4, 0, 0)
	once := func(parts ...[]byte) func(net.Conn) {
		return func(c net.Conn) {
			for _, p := range parts {
				_, _ = c.Write(p)
			}
			_, _ = io.Copy(io.Discard, c)
		}
	}
	endlessly := func(start []byte, again ...byte) func(net.Conn) {
		return func(c net.Conn) {
			_, err := c.Write(start)
			for n := 0; err == nil && n < 64<<20; n += len(again) {
				_, err = c.Write(again)
			}
		}
	}
	return map[string]func(net.Conn){
		"silence":               once(),
		"end":                   func(c net.Conn) {},
		"garbage":               once([]byte("HTTP/1.1 200 OK\r\n\r\nhello")),
		"frames of no size":     once(frame(4, 0, 0, 0, 5, 0, 0, 0, 0), settings), // CVE-2026-33814
		"frames of huge size":   once(frame(4, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff)),
		"window":                once(frame(4, 0, 0, 0, 4, 0, 0, 0, 0)),
		"bad window":            once(frame(4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff)),
		"odd settings":          once(frame(4, 0, 0, 1, 2, 3)),
		"length beyond the end": once([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}),
		"half a frame":          func(c net.Conn) { _, _ = c.Write(settings[:5]) },
		"go away":               once(settings, frame(7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
		"reset":                 once(settings, frame(3, 0, 1, 0, 0, 0, 7)),
		"push":                  once(settings, frame(5, 4, 1, 0, 0, 0, 2)),
		"settings for ever":     endlessly(settings, settings...),
		"pings for ever":        endlessly(settings, frame(6, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8)...),
		"unknown frames":        endlessly(settings, frame(0xee, 0, 0, make([]byte, 1000)...)...),
		"headers for ever":      endlessly(append(settings, frame(1, 0, 1, 0x88)...), frame(9, 0, 1, headerBlock()...)...),
		"data for nobody":       endlessly(settings, frame(0, 0, 99, make([]byte, 16000)...)...),
	}
}

// headerBlock is HPACK of many headers that are not indexed.
func headerBlock() []byte {
	var out []byte
	for i := range 500 {
		name, value := fmt.Sprintf("x-%05d", i), "0123456789"
		out = append(append(append(out, 0, byte(len(name))), name...), byte(len(value)))
		out = append(out, value...)
	}
	return out
}
