package conformance

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// maxReply bounds one reply: a page of large values.
const maxReply = 64 << 20

type dialer func(ctx context.Context) (net.Conn, error)

// newClient puts gRPC on connections that dial makes. TLS is dial's business,
// for gRPC would refuse servers here that the checks are to describe.
func (s *session) newClient(dial dialer, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+net.JoinHostPort(s.host, s.port), append(more,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	)...)
}

// open makes the connection that all requests of the run use, and the first
// request on it, whose error it returns.
func (s *session) open(ctx context.Context) error {
	conn, err := s.newClient(func(ctx context.Context) (net.Conn, error) { return s.dialTLS(ctx, s.pair, nil) },
		grpc.WithUnaryInterceptor(s.heard.interceptUnary))
	if err != nil {
		return err
	}
	s.conn, s.kv, s.watch = conn, etcdserverpb.NewKVClient(conn), etcdserverpb.NewWatchClient(conn)
	_, err = s.ask(ctx, heartbeatRange(), 1, 0)
	return err
}

// askOnce makes one small request over a connection of its own.
func (s *session) askOnce(ctx context.Context, dial dialer) error {
	conn, err := s.newClient(dial)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	r := heartbeatRange()
	_, err = etcdserverpb.NewKVClient(conn).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(r.start), RangeEnd: []byte(r.end), Limit: 1})
	return err
}

// keyRange is [start, end) as etcd spells it; an empty end is the one key.
type keyRange struct{ start, end string }

func prefixRange(prefix string) keyRange { return keyRange{prefix, schema.PrefixEnd(prefix)} }

func heartbeatRange() keyRange { return prefixRange(schema.HeartbeatKey) }

func (r keyRange) has(key string) bool {
	if r.end == "" {
		return key == r.start
	}
	return r.start <= key && key < r.end
}

func (r keyRange) String() string {
	if r.end == "" {
		return fmt.Sprintf("key %s", r.start)
	}
	return fmt.Sprintf("prefix %s", r.start)
}

// ask lists one page as Cilium's client does: etcd's client leaves the order
// unset when it is to be ascending by key.
func (s *session) ask(ctx context.Context, r keyRange, limit, revision int64) (*etcdserverpb.RangeResponse, error) {
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	return s.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(r.start), RangeEnd: []byte(r.end), Limit: limit, Revision: revision})
}

// transportFailed tells a connection that failed from a server that answered.
func transportFailed(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Canceled
}

// refused tells whether a server denied a request for who asks or what is asked.
func refused(err error) bool {
	return slices.Contains([]codes.Code{codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented}, status.Code(err))
}

// text shortens a gRPC error to its code and message.
func text(err error) string {
	st := status.Convert(err)
	return fmt.Sprintf("%s (%s)", st.Message(), st.Code())
}

// strangerCertificate makes a certificate with the client's own name that no CA
// of anybody's has signed.
func strangerCertificate(name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
