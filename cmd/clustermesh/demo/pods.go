package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Backend is what a pod of the demo runs: an HTTP server on listen that answers
// every request with its name. It returns when ctx ends.
func Backend(ctx context.Context, listen, name string) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen as %s: %w", name, err)
	}
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	})}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve as %s: %w", name, err)
	}
	return nil
}

// reply is one line of Get's output.
type reply struct {
	Body string `json:"body,omitempty"`
	Err  string `json:"err,omitempty"`
}

// Get asks url count times, each over a connection of its own, and writes one
// JSON line per request to out. Failed requests are lines too.
func Get(ctx context.Context, out io.Writer, url string, count int) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	enc := json.NewEncoder(out)
	for range count {
		var r reply
		body, err := get(ctx, client, url)
		if r.Body = body; err != nil {
			r.Err = err.Error()
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// maxBody is more than any answer the demo expects.
const maxBody = 4096

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return string(body), err
}
