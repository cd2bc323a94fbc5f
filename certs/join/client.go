package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

const callTimeout = 30 * time.Second

// Join uses an invitation: it makes a key at home, sends a request to the
// acceptor and hands the peer that this makes to install, before the acceptor
// hears of it. The error wraps a [*Refusal] if the other side refused.
//
// What it has reached is kept in the CA directory. After an error, or if the
// process was killed, it can be called again with the same token and goes on
// from there, until the other side has joined too.
//
// The confirmation is returned when it could not be delivered, together with an
// error that says so: this side has joined, and Join again, [Confirm], or a
// person with a file, brings the other to the same state.
func Join(ctx context.Context, token string, site Site, install func(Peer) error) (*Confirmation, error) {
	i, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	if err := site.notOurs(invitePrefix + i.Secret.ID()); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	t, err := site.begin(i, time.Now())
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	if t.confirmation == nil {
		if err := t.approve(ctx); err != nil {
			return nil, err
		}
		t.confirmation, err = site.AcceptApproval(*t.approval, install)
		if err != nil {
			return nil, err
		}
	}
	if t.confirmation != nil {
		if err := i.Confirm(ctx, *t.confirmation); err != nil {
			return t.confirmation, err
		}
	}
	return nil, t.end()
}

func pinned(bundle string, want Fingerprint) bool {
	cas, err := certs.ParseBundle([]byte(bundle))
	for _, c := range cas {
		if err == nil && sha256.Sum256(c.Raw) == want {
			return true
		}
	}
	return false
}

// Confirm delivers a confirmation to the acceptor of the invitation. It may be
// repeated until it succeeds, and after that.
func (i Invitation) Confirm(ctx context.Context, c Confirmation) error {
	_, err := i.call(ctx, pathConfirm, Encode(c))
	var refusal *Refusal
	if err == nil || errors.As(err, &refusal) && refusal.Reason == Replayed {
		return nil
	}
	return fmt.Errorf("confirm at %s: %w", i.Endpoint, err)
}

// call posts one message to the acceptor and returns its answer.
func (i Invitation) call(ctx context.Context, path string, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	transport := &http.Transport{
		TLSClientConfig:   i.tlsConfig(),
		ForceAttemptHTTP2: true,
		DialContext:       (&net.Dialer{}).DialContext,
	}
	defer transport.CloseIdleConnections()
	reached := false
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { reached = true }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+i.Endpoint+path, bytes.NewReader(message))
	if err != nil {
		return nil, err
	}
	if path == pathJoin {
		req.Header.Set("Authorization", "Bearer "+hex.EncodeToString(i.Secret[:]))
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, &callError{err: explain(err), sent: reached}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage+1))
	if err != nil || resp.StatusCode == http.StatusOK {
		return body, err
	}
	var refusal Refusal
	if err := json.Unmarshal(body, &refusal); err != nil || refusal.Reason == "" {
		return nil, fmt.Errorf("answered with status %d; is it a clustermesh acceptor?", resp.StatusCode)
	}
	return nil, refusal.received()
}

// callError is a call without an answer.
type callError struct {
	err  error
	sent bool // the other side may have heard it
}

func (e *callError) Error() string { return e.err.Error() }

// Unwrap returns what went wrong.
func (e *callError) Unwrap() error { return e.err }

// errNotPinned: whoever answers is not who made the token.
var errNotPinned = errors.New("the server's CA is not the one in the token: the token was changed, something stands in between, or the CA was replaced since; ask for a new invitation")

// explain adds a remedy where nothing answers.
func explain(err error) error {
	if errors.Is(err, errNotPinned) {
		return errNotPinned
	}
	return fmt.Errorf("%w; is the other side still accepting (clustermesh invite), and is the address reachable?", err)
}

// tlsConfig believes the acceptor's certificate if it comes from the one CA
// whose fingerprint is in the token. Nothing is sent before.
func (i Invitation) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: acceptorName,
		// The CA arrives with the handshake and is known by its fingerprint
		// alone, so all verification is in VerifyConnection.
		InsecureSkipVerify: true,
		VerifyConnection:   i.verify,
	}
}

func (i Invitation) verify(cs tls.ConnectionState) error {
	roots := x509.NewCertPool()
	found := false
	for _, c := range cs.PeerCertificates {
		if sha256.Sum256(c.Raw) == i.CA && c.IsCA {
			roots.AddCert(c)
			found = true
		}
	}
	if !found {
		return errNotPinned
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots:     roots,
		DNSName:   acceptorName,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("verify the other side: %w", err)
	}
	return nil
}
