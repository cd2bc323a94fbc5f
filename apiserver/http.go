package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// maxComplaints bounds the body of /readyz.
const maxComplaints = 100

// serveHTTP serves what listens by a flag until ctx ends; without a listener it
// does nothing.
func serveHTTP(ctx context.Context, flag string, listener net.Listener, handler http.Handler) error {
	if listener == nil {
		return nil
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", flag, err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return group.Wait()
}

func (a *apiserver) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", a.serveReady)
	return mux
}

// serveReady answers 200 once everything was published, else 503 with what is
// missing. Both name what is wrong besides.
func (a *apiserver) serveReady(w http.ResponseWriter, _ *http.Request) {
	missing, complaints := a.status.missing(), append(a.certs.complaints(time.Now()), a.status.complaints()...)
	if len(missing) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "not ready")
	} else {
		fmt.Fprintln(w, "ready")
	}
	fmt.Fprintln(w, "identity source:", cmp.Or(a.status.identitySource(), "not known yet"))
	for _, m := range missing {
		fmt.Fprintln(w, "missing:", m)
	}
	for i, c := range complaints {
		if i == maxComplaints {
			fmt.Fprintln(w, "problem: and", len(complaints)-i, "more")
			return
		}
		fmt.Fprintln(w, "problem:", c)
	}
}
