package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/report"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says what a [Server] serves, where and to whom. It is not changed
// after [New].
type Config struct {
	// Cluster is the name of this cluster. It decides which certificate is the
	// cluster's own (local-<Cluster>) and which cluster config and canaries a
	// remote reader may see.
	Cluster string
	// DataDir is a directory that the process may write. Everything below its
	// sub-directory etcd is deleted whenever a server starts.
	DataDir string
	// Listen is the gateway's TCP address, host:port. Port 0 takes a free one.
	Listen string
	// TLS is the gateway's identity and the CAs of its readers, directly or by
	// GetConfigForClient, which is asked for each connection and so allows to
	// change both while running. The server adds what it relies on: TLS 1.3,
	// a verified client certificate, HTTP/2, no session tickets. ClientCAs must
	// be set: system roots are never used. Nil means plain text, which is for
	// tests and restricted to loopback addresses.
	TLS *tls.Config
	// PlainTextName is the certificate name that every reader is taken to have
	// when TLS is nil, for instance "remote".
	PlainTextName string
	// Peers, if not nil, decides who may read and what: each reader must be one of
	// these peers, whose certificates are verified against its own CAs, and the
	// common names of certificates no longer mean anything but local-<Cluster>,
	// which is verified against the CAs of TLS (these may then be missing). What
	// changes in the set takes effect at once, on open connections too.
	Peers *peers.Set
	// Trust, if not nil, is what TLS trusts, followed in time (certs.NewTrust of the
	// same files). A handshake is verified only once; connections that were
	// verified with the CAs of TLS are therefore looked at again every second, and
	// closed when their certificate is revoked, its CA has been withdrawn, or one
	// of its chain has expired. Without it they last until their certificate ends.
	// It is also asked about peers: many have their certificates from the own CA.
	// Peers with ca: own need it, and it must be what that stands for.
	Trust *certs.Trust
	// Reports, if not nil, takes what the cluster's own agents report of their
	// nodes (clustermesh.report.v1). For other readers the call does not exist. It
	// cannot reach the store.
	Reports Reports
	// Log receives the server's log; nil discards it.
	Log *slog.Logger
	// Registerer receives the server's metrics while it runs; nil is none.
	Registerer prometheus.Registerer
	// QuotaBytes is the size that etcd's database may reach on disk before the
	// server gives up this life; 0 means DefaultQuotaBytes.
	QuotaBytes int64
	// Limits bound what readers may cost. Zero fields take their defaults.
	Limits Limits
}

// Reports takes reports of own agents; an error is told to the agent. All agents
// have the same certificate; disputed says that another connection, which had
// taken over from this one, has reported for the node too.
type Reports interface {
	Report(r *report.NodeReport, disputed bool) error
}

// Limits bound the memory, goroutines and time that readers may take. A zero
// field means its default.
type Limits struct {
	// Connections is the number of established connections; more are closed at
	// once. A quarter of them is kept for the cluster's own agents. Default 10240.
	Connections int
	// Pending is the number of connections before the end of their handshake. One
	// more closes the oldest that has not sent a byte, or else the oldest that has
	// let us wait for half a second; if there is none it waits. Default 512.
	Pending int
	// AcceptsPerSecond is the rate at which connections are accepted; more wait
	// in the kernel's queue. Default 10000.
	AcceptsPerSecond float64
	// Handshakes is the number of TLS handshakes that are computed at a time;
	// those that wait for their peer's next message do not count. Default half
	// of the processors.
	Handshakes int
	// HandshakeShare is the part of all processors that handshakes from one
	// address (of IPv6 a /64) may take for long that come to nothing: of strangers,
	// bad certificates, peers over their rate of connections. HandshakeBurst is how
	// much processor time they may take before. More wait, as long as
	// HandshakeTimeout allows, and go on in an order drawn by lot; while a
	// handshake could be computed, those of all such addresses have four times
	// HandshakeShare besides. Defaults 0.005 and 1 s.
	HandshakeShare float64
	HandshakeBurst time.Duration
	// HandshakeTimeout bounds a connection from accept to the end of its TLS
	// handshake, and the start of HTTP/2 after it. Default 5 s.
	HandshakeTimeout time.Duration
	// StreamsPerConnection is HTTP/2's limit of concurrent calls. Default 64.
	StreamsPerConnection uint32
	// WatchesPerStream is the number of watches in one Watch call. Default 64.
	WatchesPerStream int
	// WatchesPerConnection is the number of watches of all of a connection's
	// Watch calls. Default 256.
	WatchesPerConnection int
	// CreatesPerSecond is the lasting rate at which a connection may create
	// watches; twice WatchesPerConnection may come at once. Default 20.
	CreatesPerSecond float64
	// RequestsPerSecond is the lasting rate of a connection's calls and of
	// requests in its Watch calls; twice as many may come at once. Each 64 KiB of
	// a listing count as another one. More wait for up to a second and are
	// refused if that is not enough. Default 2000.
	RequestsPerSecond float64
	// Share is the part of all processors that what one connection asks for may
	// take for long, Burst how much processor time it may take before. Nothing is
	// read from a connection that has taken more, until its share has paid for it.
	// Changes that are sent to watches count only as far as they are older than
	// the watch; for the others see [PeerLimits]. Defaults 0.005 and 5 s.
	Share float64
	Burst time.Duration
	// Ranges is the number of listings read at a time, RangesPerConnection that
	// of one connection; more wait. Defaults 16 and 4.
	Ranges              int
	RangesPerConnection int
	// ReceiveBytes is the largest request. Default 64 KiB.
	ReceiveBytes int
	// HeaderBytes is the largest HTTP/2 header list. Default 16 KiB.
	HeaderBytes uint32
	// ReplyBytes is the size above which a page of a listing ends early (with
	// more set) and a reply of a watch is continued in another. A single
	// revision is never cut unless the reader asked for fragments, a single key
	// never. Default 1 MiB.
	ReplyBytes int
	// UnpagedBytes is the largest reply to a listing without limit. Default
	// 64 MiB.
	UnpagedBytes int
	// UnreadBytes is how much of its listings a connection may leave unread
	// before its next one has to wait. Default 8 MiB.
	UnreadBytes int64
	// SendTimeout is how long a reader may leave a reply unread before its
	// connection is closed; half as long may the one request of a call take from
	// its start to its end. Default 20 s.
	SendTimeout time.Duration
	// RingRevisions and RingBytes are the history that watches can start in or
	// fall behind by. Defaults 65536 and 64 MiB.
	RingRevisions int
	RingBytes     int
	// ProgressInterval is the time between progress replies to an idle watch
	// that asked for them. Default 10 min, as in etcd.
	ProgressInterval time.Duration
	// Peer bounds each configured peer as a whole.
	Peer PeerLimits
}

// PeerLimits bound what one configured peer, a cluster with all its nodes, may
// take on all its connections together. A zero field means its default, which
// is meant for two thousand nodes.
type PeerLimits struct {
	// Connections is the number of established connections. Default 2048.
	Connections int
	// ConnectsPerSecond is the lasting rate of new ones; Connections of them may
	// come at once. Default 20.
	ConnectsPerSecond float64
	// Streams is the number of calls in progress. Default 16384.
	Streams int
	// Watches is the number of watches. Default 32768.
	Watches int
	// CreatesPerSecond is the lasting rate at which watches are created; Watches
	// of them may come at once. Default 1000.
	CreatesPerSecond float64
	// RequestsPerSecond is as in [Limits]. Default 5000.
	RequestsPerSecond float64
	// Share and Burst are as in [Limits], for all of the peer's connections.
	// PeakShare is what it may take while it uses up its Burst. Where no peers are
	// configured these hold for each address that readers come from. Defaults 0.01,
	// 30 s and 0.25.
	Share, PeakShare float64
	Burst            time.Duration
	// NewsShare is the part of all processors that telling the peer of changes may
	// take for long, NewsBurst how much processor time it may take before. What is
	// beyond that is told later, more of it at once. They hold for each address
	// where no peers are configured. Defaults 0.25 and 10 s.
	NewsShare float64
	NewsBurst time.Duration
	// Ranges is the number of listings read at a time; more wait. Default 8, half
	// of those of all.
	Ranges int
	// UnreadBytes is how much of its listings the peer may leave unread before
	// the next one has to wait. Default 64 MiB.
	UnreadBytes int64
}

func (l PeerLimits) withDefaults() PeerLimits {
	orDefault(&l.Connections, 2048)
	orDefault(&l.ConnectsPerSecond, 20)
	orDefault(&l.Streams, 16384)
	orDefault(&l.Watches, 32768)
	orDefault(&l.CreatesPerSecond, 1000)
	orDefault(&l.RequestsPerSecond, 5000)
	orDefault(&l.Share, 0.01)
	orDefault(&l.PeakShare, 0.25)
	orDefault(&l.Burst, 30*time.Second)
	orDefault(&l.NewsShare, 0.25)
	orDefault(&l.NewsBurst, 10*time.Second)
	orDefault(&l.Ranges, 8)
	orDefault(&l.UnreadBytes, 64<<20)
	return l
}

const (
	// DefaultQuotaBytes is the quota of a configuration that gives none.
	DefaultQuotaBytes = 512 << 20
	// MinQuotaBytes is the smallest that there can be.
	MinQuotaBytes = 16 << 20
)

func orDefault[T int | int64 | uint32 | float64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.Connections, 10240)
	orDefault(&l.Pending, 512)
	orDefault(&l.AcceptsPerSecond, 10000)
	orDefault(&l.Handshakes, max(1, runtime.GOMAXPROCS(0)/2))
	orDefault(&l.HandshakeShare, 0.005)
	orDefault(&l.HandshakeBurst, time.Second)
	orDefault(&l.HandshakeTimeout, 5*time.Second)
	orDefault(&l.StreamsPerConnection, 64)
	orDefault(&l.WatchesPerStream, 64)
	orDefault(&l.WatchesPerConnection, 256)
	orDefault(&l.CreatesPerSecond, 20)
	orDefault(&l.RequestsPerSecond, 2000)
	orDefault(&l.Share, 0.005)
	orDefault(&l.Burst, 5*time.Second)
	orDefault(&l.Ranges, 16)
	orDefault(&l.RangesPerConnection, 4)
	orDefault(&l.ReceiveBytes, 64<<10)
	orDefault(&l.HeaderBytes, 16<<10)
	orDefault(&l.ReplyBytes, 1<<20)
	orDefault(&l.UnpagedBytes, 64<<20)
	orDefault(&l.UnreadBytes, 8<<20)
	orDefault(&l.SendTimeout, 20*time.Second)
	orDefault(&l.RingRevisions, 64<<10)
	orDefault(&l.RingBytes, 64<<20)
	orDefault(&l.ProgressInterval, 10*time.Minute)
	l.Peer = l.Peer.withDefaults()
	return l
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	orDefault(&c.QuotaBytes, DefaultQuotaBytes)
	c.Limits = c.Limits.withDefaults()
	return c
}

// Validate joins all problems of the configuration; it does no I/O.
func (c Config) Validate() error {
	var errs []error
	if err := schema.ValidateClusterName(c.Cluster); err != nil {
		errs = append(errs, err)
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New(`data directory "" is not usable: name a directory that this process may write`))
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen address %q is not host:port: use for instance \":2379\"", c.Listen))
	}
	if c.QuotaBytes < 0 || c.QuotaBytes > 0 && c.QuotaBytes < MinQuotaBytes {
		errs = append(errs, fmt.Errorf("quota of %d bytes is too small: use at least 16 MiB, or 0 for the default", c.QuotaBytes))
	}
	errs = append(errs, c.validateTransport(), c.Limits.validate())
	return errors.Join(errs...)
}

func (c Config) validateTransport() error {
	switch {
	case c.TLS == nil && c.Peers != nil:
		return errors.New("peers are configured without TLS: set TLS, certificates say who a peer is")
	case c.TLS == nil && c.Trust != nil:
		return errors.New("trust is configured without TLS: set TLS, or leave it out")
	case c.TLS == nil:
		return c.validatePlainText()
	case c.PlainTextName != "":
		return fmt.Errorf("plain text name %q is set together with TLS: remove one of them", c.PlainTextName)
	case c.TLS.GetConfigForClient == nil && c.TLS.ClientCAs == nil && c.Peers == nil:
		return errors.New("TLS has neither client CAs nor GetConfigForClient: set the CA pool that signs the readers' certificates")
	}
	return nil
}

func (c Config) validatePlainText() error {
	host, _, _ := net.SplitHostPort(c.Listen)
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("listen address %q without TLS is not a loopback address: set TLS", c.Listen)
	}
	if _, err := grantFor(c.Cluster, c.PlainTextName); err != nil {
		return fmt.Errorf("plain text name: %w", err)
	}
	return nil
}

func (l Limits) validate() error {
	for _, v := range []int64{
		int64(l.Connections), int64(l.Handshakes), int64(l.HandshakeTimeout), int64(l.WatchesPerStream),
		int64(l.WatchesPerConnection), int64(l.CreatesPerSecond), int64(l.Ranges), int64(l.RangesPerConnection), int64(l.ReceiveBytes), int64(l.ReplyBytes),
		int64(l.UnpagedBytes), l.UnreadBytes, int64(l.SendTimeout), int64(l.RingRevisions),
		int64(l.RingBytes), int64(l.ProgressInterval), int64(l.Pending), int64(l.AcceptsPerSecond), int64(l.RequestsPerSecond),
		int64(l.Peer.Connections), int64(l.Peer.ConnectsPerSecond), int64(l.Peer.Streams), int64(l.Peer.Watches),
		int64(l.Peer.CreatesPerSecond), int64(l.Peer.RequestsPerSecond), int64(l.Peer.Ranges), l.Peer.UnreadBytes,
		int64(l.HandshakeBurst), int64(l.Burst), int64(l.Peer.Burst), int64(l.Peer.NewsBurst),
	} {
		if v < 0 {
			return fmt.Errorf("limit %d is negative: use 0 for the default", v)
		}
	}
	for _, v := range []float64{l.HandshakeShare, l.Share, l.Peer.Share, l.Peer.PeakShare, l.Peer.NewsShare} {
		if v < 0 || v > 1 {
			return fmt.Errorf("share %g of all processors is not from 0 to 1: use 0 for the default", v)
		}
	}
	return nil
}
