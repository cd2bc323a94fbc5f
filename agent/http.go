package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveHTTP serves /metrics, /healthz and /readyz until ctx ends.
func (a *Agent) serveHTTP(ctx context.Context) error {
	if a.cfg.HTTP == "" {
		return nil
	}
	listener, err := net.Listen("tcp", a.cfg.HTTP)
	if err != nil {
		return fmt.Errorf("--http %q: %w; choose a free address", a.cfg.HTTP, err)
	}
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve --http: %w", err)
	}
	return nil
}

func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.cfg.Registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		// The core answering is what health means: it is the one goroutine that
		// everything depends on.
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if err := a.core.do(ctx, func(*core) {}); err != nil {
			http.Error(w, "the agent's core does not answer: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", a.readyz)
	return mux
}

// readyz says ready once the node's maps reflect its own cluster: then local
// traffic is right, and a remote cluster that is away must not hold a node back.
func (a *Agent) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	var missing string
	if err := a.core.do(ctx, func(c *core) { missing = c.notReady() }); err != nil {
		missing = err.Error()
	}
	if missing != "" {
		http.Error(w, "not ready: "+missing, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}
