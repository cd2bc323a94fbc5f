package kvstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// ConnConfig configures Dial. Zero values take the defaults named.
type ConnConfig struct {
	// Endpoints are https://host:port, or http://host:port without TLS. They
	// are tried in random order; the first that answers is used.
	Endpoints []string
	// HostAliases gives the addresses of hosts that are not to be looked up in
	// DNS. Certificates are still verified against the endpoint's host.
	HostAliases map[string][]netip.Addr
	// TLS is required for https endpoints. ServerName is set to the endpoint's
	// host when empty. It is cloned.
	TLS *tls.Config
	// Keepalive is how long the server may be silent before it is asked for a
	// sign of life (one small Range); KeepaliveTimeout is how long it may take
	// to give one before the Conn is over. Default 5 s each.
	Keepalive, KeepaliveTimeout time.Duration
	// MaxRecvBytes bounds one received message; default 4 MiB.
	MaxRecvBytes int
	// DialTimeout bounds the attempt at one address, from the TCP handshake to
	// the first reply; default 5 s.
	DialTimeout time.Duration
}

// Validate reports every problem of the configuration.
func (c ConnConfig) Validate() error {
	var problems []error
	if len(c.Endpoints) == 0 {
		problems = append(problems, errors.New("check connection: there are no endpoints; give at least one, like https://host:2379"))
	}
	for _, e := range c.Endpoints {
		target, err := parseEndpoint(e)
		if err == nil && target.secure && c.TLS == nil {
			err = fmt.Errorf("check endpoint %q: https needs a TLS configuration; give certificates or use http", e)
		}
		problems = append(problems, err)
	}
	if c.Keepalive < 0 || c.KeepaliveTimeout < 0 || c.DialTimeout < 0 || c.MaxRecvBytes < 0 {
		problems = append(problems, fmt.Errorf("check connection: keepalive %s, keepalive timeout %s, dial timeout %s and max receive bytes %d must not be negative; use 0 for the default",
			c.Keepalive, c.KeepaliveTimeout, c.DialTimeout, c.MaxRecvBytes))
	}
	return errors.Join(problems...)
}

func (c ConnConfig) withDefaults() ConnConfig {
	c.Keepalive = orDefault(c.Keepalive, 5*time.Second)
	c.KeepaliveTimeout = orDefault(c.KeepaliveTimeout, 5*time.Second)
	c.DialTimeout = orDefault(c.DialTimeout, 5*time.Second)
	c.MaxRecvBytes = orDefault(c.MaxRecvBytes, 4<<20)
	return c
}

// target is a parsed endpoint.
type target struct {
	endpoint, host, port string
	secure               bool
}

func parseEndpoint(endpoint string) (target, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return target{}, fmt.Errorf("check endpoint %q: %w; write https://host:port", endpoint, err)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || u.Path != "" && u.Path != "/" {
		return target{}, fmt.Errorf("check endpoint %q: it is not of the form https://host:port", endpoint)
	}
	return target{endpoint, u.Hostname(), u.Port(), u.Scheme == "https"}, nil
}

// DialStage names how far a dial came.
type DialStage string

// The stages of a dial, in order. At StageVerify this side refuses the server,
// at StageRefused the server refuses this side with a TLS alert.
const (
	StageResolve DialStage = "resolve"
	StageConnect DialStage = "connect"
	StageTLS     DialStage = "tls"
	StageVerify  DialStage = "verify"
	StageRefused DialStage = "refused"
	StageProbe   DialStage = "probe"
)

// DialError is why one address of one endpoint could not be used. Dial returns
// one or several of them joined.
type DialError struct {
	Endpoint string
	Address  string // empty at StageResolve
	Stage    DialStage
	Err      error
}

func (e *DialError) Error() string {
	where := e.Endpoint
	if e.Address != "" {
		where += " (" + e.Address + ")"
	}
	what, hint := e.Stage.text()
	return fmt.Sprintf("dial %s: %s: %v; %s", where, what, foreign(e.Err.Error()), hint)
}

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

func (s DialStage) text() (what, hint string) {
	switch s {
	case StageResolve:
		return "look up the host", "check the name, or give it an alias with addresses"
	case StageConnect:
		return "connect", "check that the server runs, the port, and firewalls between here and there"
	case StageTLS:
		return "shake hands", "check that TLS 1.3 with HTTP/2 is served there and that the server is not stuck"
	case StageVerify:
		return "verify the server", "check that the CA and the endpoint's host name are those of the server's certificate"
	case StageRefused:
		return "server refused this client's certificate", "check that it is issued by a CA the server trusts and is not expired, and that the other side has not disconnected this cluster"
	}
	return "get a first reply", "check that an etcd API is served there; a connection closed here can also mean that the server refused the certificate"
}

// Dial connects to the first endpoint that answers a request, and returns an
// error that says for each endpoint and address what failed: every one is a
// *DialError. The returned Conn is to be closed by the caller. ctx bounds the
// dialling only.
func Dial(ctx context.Context, cfg ConnConfig) (*Conn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	endpoints := slices.Clone(cfg.Endpoints)
	rand.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
	var failures []error
	for _, endpoint := range endpoints {
		conn, err := cfg.dialEndpoint(ctx, endpoint)
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

func (c ConnConfig) dialEndpoint(ctx context.Context, endpoint string) (*Conn, error) {
	to, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, err
	}
	addrs, err := c.resolve(ctx, to.host)
	if err != nil {
		return nil, &DialError{Endpoint: endpoint, Stage: StageResolve, Err: err}
	}
	var failures []error
	for _, addr := range addrs {
		conn, err := c.dialAddress(ctx, to, net.JoinHostPort(addr.String(), to.port))
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

func (c ConnConfig) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs := c.HostAliases[host]
	if addr, err := netip.ParseAddr(host); err == nil && len(addrs) == 0 {
		return []netip.Addr{addr}, nil
	}
	if len(addrs) == 0 {
		ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
		defer cancel()
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		addrs = found
	}
	addrs = slices.Clone(addrs)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs, nil
}

func (c ConnConfig) dialAddress(ctx context.Context, to target, address string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	fail := func(stage DialStage, err error) (*Conn, error) {
		return nil, &DialError{Endpoint: to.endpoint, Address: address, Stage: stage, Err: err}
	}
	raw, err := c.connect(ctx, address)
	if err != nil {
		return fail(StageConnect, err)
	}
	secured, err := c.secure(ctx, raw, to)
	if err != nil {
		raw.Close()
		return fail(tlsStage(err), err)
	}
	conn, err := newConn(c, to, secured)
	if err != nil {
		secured.Close()
		return fail(StageProbe, err)
	}
	if err := conn.probe(ctx); err != nil {
		conn.Close()
		return fail(conn.probeStage(), conn.wire.cause(err))
	}
	conn.startPinger()
	return conn, nil
}

// newConn puts gRPC on a connection that is ready for it.
func newConn(cfg ConnConfig, to target, raw net.Conn) (*Conn, error) {
	wire := newTransport(raw)
	cc, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(to.host, to.port),
		grpc.WithContextDialer(wire.dialOnce),
		grpc.WithTransportCredentials(handshaken{secure: to.secure}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cfg.MaxRecvBytes), grpc.ForceCodecV2(codec{})),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, fmt.Errorf("set up gRPC: %w", err)
	}
	c := &Conn{cfg: cfg, endpoint: to.endpoint, grpc: cc, wire: wire, done: make(chan struct{}), cancel: func() {},
		kv: etcdserverpb.NewKVClient(cc), watch: etcdserverpb.NewWatchClient(cc)}
	return c, nil
}

// Fixed flow-control windows bound what a server can push at a slow reader:
// one stream window per watch.
const (
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// maxHeaderBytes bounds the headers of a reply; gRPC's own bound is 16 MiB.
const maxHeaderBytes = 64 << 10
