package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/apiserver/api"
	"github.com/clustermesh/clustermesh/kvstore/report"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// serveAPI serves the local API on its unix socket until ctx ends. Nobody but
// the socket's owner can open it at any moment: it is made in a directory of its
// own and moved into place.
func (a *apiserver) serveAPI(ctx context.Context) error {
	path := a.config.apiSocket()
	if path == "" {
		a.log.Warn("no local API: the path of the socket in the data directory is too long; set --api-socket", "name", a.config.DataDir)
		return nil
	}
	listener, err := listenUnix(path)
	if err != nil {
		return fmt.Errorf("--api-socket %q: %w", path, err)
	}
	defer os.Remove(path) //nolint:errcheck // the next start removes it as well
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxAsked))
	api.RegisterApiserverServer(server, &local{a: a})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve --api-socket: %w", err)
	}
	return nil
}

// maxAsked bounds a request of the local API: the names of all nodes of a large
// cluster fit.
const maxAsked = 4 << 20

// listenUnix listens on a socket that only its owner may open.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove a former socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// local answers the local API.
type local struct {
	api.UnimplementedApiserverServer
	a *apiserver
}

// Status answers from what is known; it asks nobody.
func (l *local) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	s := l.a.status
	missing := s.missing()
	out := &api.StatusResponse{
		Cluster: l.a.config.ClusterName, ClusterId: l.a.config.ClusterID, Version: l.a.config.Version,
		Ready: len(missing) == 0, Missing: missing, Problems: append(l.a.certs.complaints(time.Now()), s.complaints()...),
		Services: uint32(s.count(schema.KindLocalService)), Nodes: l.a.agents.status(),
	}
	if m := s.newest(); m.Micros > 0 {
		out.Stamp, out.StampSeconds = m.Stamp.String(), time.Since(time.UnixMicro(m.Micros)).Seconds()
	}
	return out, nil
}

// stampLimit bounds how long a stamp may take.
const stampLimit = time.Minute

// Stamp makes the source catch up and returns the stamp of a marker behind that.
func (l *local) Stamp(ctx context.Context, _ *api.StampRequest) (*api.StampResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, stampLimit)
	defer cancel()
	m, err := l.stamp(ctx)
	if err != nil {
		text := err.Error()
		if missing := l.a.status.missing(); len(missing) > 0 {
			text += "; not ready: " + strings.Join(missing, ", ")
		}
		return nil, grpcstatus.Error(codes.Unavailable, text)
	}
	return &api.StampResponse{Cluster: l.a.config.ClusterName, Stamp: m.Stamp.String()}, nil
}

func (l *local) stamp(ctx context.Context) (schema.Marker, error) {
	life := l.a.status.current()
	if life == nil {
		return schema.Marker{}, errors.New("the store is not running; try again")
	}
	if err := l.a.origin.CatchUp(ctx); err != nil {
		return schema.Marker{}, err
	}
	return life.stamper.ask(ctx)
}

// Wait waits for nodes.
func (l *local) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	var targets []target
	for _, t := range r.GetTargets() {
		stamp, err := schema.ParseStamp(t.GetStamp())
		if err == nil {
			err = schema.ValidateClusterName(t.GetCluster())
		}
		if err != nil {
			return nil, grpcstatus.Error(codes.InvalidArgument, err.Error())
		}
		targets = append(targets, target{t.GetCluster(), stamp})
	}
	for _, name := range r.GetNodes() {
		if err := report.ValidateNode(name); err != nil {
			return nil, grpcstatus.Error(codes.InvalidArgument, err.Error())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.GetTimeoutSeconds()*float64(time.Second)))
	defer cancel()
	nodes, behind := l.a.agents.await(ctx, targets, r.GetNodes())
	return &api.WaitResponse{Done: len(behind) == 0, Nodes: uint32(nodes), Behind: behind}, nil
}
