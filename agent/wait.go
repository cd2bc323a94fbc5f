package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize/english"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Wait returns when this node's maps have what was asked for, or when the time
// is over.
func (l *local) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	targets, err := parseTargets(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.GetTimeoutSeconds()*float64(time.Second)))
	defer cancel()
	newest, behind := l.askNewest(ctx, r)
	for name, stamp := range newest {
		targets[name] = append(targets[name], stamp)
	}
	out := &api.WaitResponse{Behind: behind}
	for name, stamps := range targets {
		for _, s := range stamps {
			out.Targets = append(out.Targets, &api.Target{Cluster: name, Stamp: s.String()})
		}
	}
	late, err := l.await(ctx, targets)
	if err != nil {
		return nil, err
	}
	out.Behind = append(out.Behind, late...)
	out.Done = len(out.Behind) == 0
	return out, nil
}

func parseTargets(r *api.WaitRequest) (map[string][]schema.Stamp, error) {
	out := map[string][]schema.Stamp{}
	for _, t := range r.GetTargets() {
		stamp, err := schema.ParseStamp(t.GetStamp())
		if err != nil {
			return nil, err
		}
		out[t.GetCluster()] = append(out[t.GetCluster()], stamp)
	}
	return out, nil
}

// askNewest asks clusters for their newest markers. Without a word on which, all
// that are configured and write markers are asked.
func (l *local) askNewest(ctx context.Context, r *api.WaitRequest) (map[string]schema.Stamp, []*api.Behind) {
	names := r.GetClusters()
	chosen := len(names) > 0 || len(r.GetTargets()) > 0
	asks := map[string]chan chan<- newest{}
	_ = l.core.do(ctx, func(c *core) {
		if !chosen {
			for _, s := range c.mesh.Status() {
				if s.Configured && c.links[s.Name] != nil {
					names = append(names, s.Name)
				}
			}
		}
		for _, name := range names {
			if link := c.links[name]; link != nil {
				asks[name] = link.newest
			}
		}
	})
	found := map[string]schema.Stamp{}
	var behind []*api.Behind
	for _, name := range names {
		m, err := askOne(ctx, asks[name])
		switch {
		case err == nil:
			found[name] = m.Stamp
		case chosen || !errors.Is(err, errNoMarker):
			behind = append(behind, &api.Behind{Cluster: name, Reason: l.why(name, err)})
		}
	}
	return found, behind
}

func askOne(ctx context.Context, asks chan chan<- newest) (schema.Marker, error) {
	if asks == nil {
		return schema.Marker{}, errors.New("no cluster of this name is configured on this node; add its file to --clusters")
	}
	answer := make(chan newest, 1)
	select {
	case asks <- answer:
	case <-ctx.Done():
		return schema.Marker{}, errors.New("it is not connected")
	}
	select {
	case got := <-answer:
		return got.marker, got.err
	case <-ctx.Done():
		return schema.Marker{}, errors.New("it does not answer")
	}
}

// why adds a cluster's state to a reason.
func (l *local) why(name string, err error) string {
	text := err.Error()
	_ = l.core.do(context.Background(), func(c *core) {
		for _, s := range c.status().GetClusters() {
			if s.GetName() == name {
				text = s.GetState() + ": " + cmp.Or(s.GetLastError(), text)
			}
		}
	})
	return text
}

// await returns when nothing is missing, or with what is when ctx ends.
func (l *local) await(ctx context.Context, targets map[string][]schema.Stamp) ([]*api.Behind, error) {
	for {
		var late []*api.Behind
		var moved <-chan struct{}
		if err := l.core.do(context.WithoutCancel(ctx), func(c *core) { late, moved = c.behind(targets), c.moved }); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		if len(late) == 0 {
			return nil, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return late, nil
		}
	}
}

// behind lists what this node lacks of targets. It runs on the core's goroutine.
func (c *core) behind(targets map[string][]schema.Stamp) (out []*api.Behind) {
	if c.fault != "" {
		out = append(out, &api.Behind{Reason: "data path: " + c.fault})
	}
	if n := len(c.failed); n > 0 {
		out = append(out, &api.Behind{Reason: fmt.Sprintf("%d %s not fit into the maps; see clustermesh status", n, english.PluralWord(n, "service does", "services do"))})
	}
	byName := map[string]*api.Cluster{}
	for _, s := range c.status().GetClusters() {
		byName[s.GetName()] = s
	}
	for name, stamps := range targets {
		for _, stamp := range stamps {
			if l := c.links[name]; l == nil || !l.progress.marker.Covers(stamp) {
				out = append(out, &api.Behind{Cluster: name, Reason: lateReason(byName[name])})
			}
		}
	}
	return out
}

func lateReason(s *api.Cluster) string {
	if s == nil {
		return "no cluster of this name is configured on this node; add its file to --clusters"
	}
	return s.GetState() + ": " + cmp.Or(s.GetLastError(), "its changes are not all in the maps yet")
}
