package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/agent/api"
)

// serveAPI serves the local API on its unix socket until ctx ends. The socket
// is made in a way that nobody but its owner can open it at any moment.
func (a *Agent) serveAPI(ctx context.Context) error {
	path := a.cfg.APISocket
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("--api-socket %q: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--api-socket %q: remove a former socket: %w", path, err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("--api-socket %q: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return fmt.Errorf("--api-socket %q: %w", path, err)
	}
	server := grpc.NewServer()
	api.RegisterAgentServer(server, &local{core: a.core})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve --api-socket: %w", err)
	}
	return nil
}

// local answers the local API from the core's state.
type local struct {
	api.UnimplementedAgentServer
	core *core
}

func (l *local) Status(ctx context.Context, _ *api.StatusRequest) (*api.StatusResponse, error) {
	var out *api.StatusResponse
	return out, l.core.do(ctx, func(c *core) { out = c.status() })
}

func (l *local) Services(ctx context.Context, r *api.ServicesRequest) (*api.ServicesResponse, error) {
	var out *api.ServicesResponse
	return out, l.core.do(ctx, func(c *core) { out = c.services(r) })
}

func (l *local) Explain(ctx context.Context, r *api.ExplainRequest) (*api.ExplainResponse, error) {
	var out *api.ExplainResponse
	var failed error
	if err := l.core.do(ctx, func(c *core) { out, failed = c.explain(r) }); err != nil {
		return nil, err
	}
	return out, failed
}

func (l *local) Release(ctx context.Context, r *api.ReleaseRequest) (*api.ReleaseResponse, error) {
	out := &api.ReleaseResponse{}
	return out, l.core.do(ctx, func(c *core) { out.Released = uint32(c.release(r.GetCluster(), "an operator asked for it")) })
}

func (l *local) Maps(ctx context.Context, _ *api.MapsRequest) (*api.MapsResponse, error) {
	var out *api.MapsResponse
	var failed error
	if err := l.core.do(ctx, func(c *core) { out, failed = c.mapEntries() }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	all, err := l.core.usage()
	addUsage(out, all)
	return out, err
}
