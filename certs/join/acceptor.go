package join

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

// acceptorName is what the certificate of every acceptor is for. No certificate
// that is issued otherwise has it unless somebody asks for it by name, so the
// server of another cluster below the same CA cannot pass for an acceptor. The
// domain "internal" is reserved for names that nobody owns.
const acceptorName = "join.clustermesh.internal"

const (
	pathJoin    = "/v1/join"
	pathConfirm = "/v1/confirm"

	leafLife = time.Hour

	// The limits of a listener that anybody can reach: exchanges are small and
	// take two round trips.
	maxConns      = 64
	maxConnsEach  = 16 // of one address: several clusters may be behind it
	connLife      = 30 * time.Second
	maxHeader     = 4 << 10
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second
	shutdownTime  = 5 * time.Second
	maxStreams    = 4 // of one connection; with maxConns and maxMessage it bounds memory
)

// Acceptor serves the invitations of a site over HTTP/2 and TLS 1.3, on a
// listener of its own. Clients show no certificate; they have none yet.
type Acceptor struct {
	// Site is the own side. What an invitation says for itself is decided by
	// that, and For, Replace and View of the site count for nothing.
	Site Site
	// Only is the id of the one invitation that is served; all when empty.
	Only string
	Log  *slog.Logger // discarded when nil
	// Install keeps a peer that has joined, with the key that is its own; an
	// error is reported to the other side, which may confirm again.
	Install func(Peer) error
	// Joined is told of every cluster that has joined, after Install. May be nil.
	Joined func(cluster string)
	// Refused is told of every refusal, for metrics. May be nil.
	Refused func(Reason)
}

// Serve accepts until ctx ends, which is no error, and closes the listener.
func (a *Acceptor) Serve(ctx context.Context, ln net.Listener) error {
	if err := a.Site.Validate(); err != nil {
		return fmt.Errorf("accept clusters: %w", errors.Join(err, ln.Close()))
	}
	log := a.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	leaf := &freshLeaf{dir: a.Site.Dir}
	server := &http.Server{
		Handler:           &handler{acceptor: a, log: log},
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: leaf.get, SessionTicketsDisabled: true},
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      2 * bodyTimeout,
		IdleTimeout:       bodyTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(limit(ln, limits{maxConns, maxConnsEach, connLife}), "", "") }()
	select {
	case err := <-ended:
		return fmt.Errorf("accept clusters: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	err := server.Shutdown(grace)
	<-ended
	return err
}

// freshLeaf is the acceptor's certificate, made anew well before it ends.
type freshLeaf struct {
	dir string

	mu    sync.Mutex
	cert  *tls.Certificate
	until time.Time
}

func (f *freshLeaf) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cert != nil && time.Now().Before(f.until) {
		return f.cert, nil
	}
	cert, err := certs.Ephemeral(f.dir, acceptorName, leafLife)
	if err != nil {
		return nil, err
	}
	f.cert, f.until = &cert, time.Now().Add(leafLife/2)
	return f.cert, nil
}

// handler answers the two calls.
type handler struct {
	acceptor *Acceptor
	log      *slog.Logger
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != pathJoin && r.URL.Path != pathConfirm {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	if err != nil {
		h.fail(w, refuse(BadRequest, "the message could not be read, or is larger than %d bytes", maxMessage))
		return
	}
	var answer []byte
	if r.URL.Path == pathJoin {
		answer, err = h.join(r.Header.Get("Authorization"), body)
	} else {
		err = h.confirm(body)
	}
	if err != nil {
		h.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(answer) //nolint:errcheck // the other side notices
}

func (h *handler) join(authorization string, body []byte) ([]byte, error) {
	secret, err := parseSecret(authorization)
	if err != nil {
		return nil, err
	}
	// Strangers are turned away before anything they sent is looked at.
	if _, err := h.acceptor.Site.invitationOf(secret); err != nil {
		return nil, err
	}
	if only := h.acceptor.Only; only != "" && only != secret.ID() {
		return nil, refuse(Unknown, "the other side accepts another invitation here; ask its operator to run: clustermesh invite serve")
	}
	request, err := DecodeRequest(body)
	if err != nil {
		return nil, refuse(BadRequest, "%v", err)
	}
	approval, err := h.acceptor.Site.Redeem(secret, request, h.acceptor.Install)
	if err != nil {
		return nil, err
	}
	h.log.Info("approved cluster", "cluster", request.From.Cluster, "op", "join")
	if approval.CSR == "" {
		h.joined(request.From.Cluster)
	}
	return Encode(approval), nil
}

func parseSecret(authorization string) (Secret, error) {
	var s Secret
	text, ok := strings.CutPrefix(authorization, "Bearer ")
	if raw, err := hex.DecodeString(text); ok && err == nil && len(raw) == len(s) {
		copy(s[:], raw)
		return s, nil
	}
	return s, refuse(Unknown, "the request shows no secret of an invitation")
}

func (h *handler) confirm(body []byte) error {
	confirmation, err := decodeConfirmation(body)
	if err != nil {
		return refuse(BadRequest, "%v", err)
	}
	if err := h.serves(confirmation); err != nil {
		return err
	}
	site, cluster := h.acceptor.Site, ""
	site.For, site.Replace, site.View = "", false, View{} // as it was approved
	err = site.AcceptConfirmation(confirmation, func(p Peer) error {
		cluster = p.Cluster
		return h.acceptor.Install(p)
	})
	if err != nil {
		return err
	}
	h.joined(cluster)
	return nil
}

// serves refuses the confirmation of an exchange that is not of the one
// invitation that is served.
func (h *handler) serves(c Confirmation) error {
	if h.acceptor.Only == "" {
		return nil
	}
	i, err := h.acceptor.Site.invited(h.acceptor.Only)
	if err != nil {
		return err
	}
	if i.Used == nil || i.Used.Request != c.Request {
		return refuse(Unknown, "no exchange %s waits here for its confirmation", c.Request)
	}
	return nil
}

func (h *handler) joined(cluster string) {
	h.log.Info("cluster joined", "cluster", cluster, "op", "join")
	if h.acceptor.Joined != nil {
		h.acceptor.Joined(cluster)
	}
}

// fail tells the other side what is wrong with what it sent; what is wrong on
// this side is for this side's log.
func (h *handler) fail(w http.ResponseWriter, err error) {
	var refusal *Refusal
	status := http.StatusForbidden
	if !errors.As(err, &refusal) {
		h.log.Error("failed to accept cluster", "err", err)
		status, refusal = http.StatusInternalServerError, refuse("failed", "the other side could not do it; its log says why")
	} else {
		h.log.Warn("refused cluster", "reason", string(refusal.Reason), "err", refusal)
		if h.acceptor.Refused != nil {
			h.acceptor.Refused(refusal.Reason)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(refusal) //nolint:errcheck // the other side notices
}
