package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/liveness"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// order is how far remote clusters are, for services that want the nearest
// first. It is kept in a file of the state directory, so that a restart moves no
// connection while distances are measured anew.
type order struct {
	*liveness.Order
	changed chan struct{} // it has to be written
}

// orderFile is the file.
const orderFile = "distances.json"

// maxDistance bounds what is believed of the file, as a probe's time is bounded.
const maxDistance = int64(time.Second)

func newOrder(distances map[string]int64) order {
	return order{liveness.NewOrder(distances), make(chan struct{}, 1)}
}

// readOrder reads the file. Without a good one nothing is known.
func readOrder(dir string, log *slog.Logger) order {
	var all map[string]int64
	data, err := readBounded(filepath.Join(dir, orderFile))
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("distances of a former life are not readable; they are measured anew", "key", orderFile, "err", err)
	}
	good := map[string]int64{}
	for name, ns := range all {
		if schema.ValidateClusterName(name) == nil && ns > 0 && ns < maxDistance && len(good) < schema.MaxClusters511 {
			good[name] = ns
		}
	}
	return newOrder(good)
}

// reorder ends a round of distances; services that want the nearest clusters
// first are decided on anew, bit by bit, if that changed their order.
func (c *core) reorder(moving bool) {
	if !c.order.Round(moving) {
		return
	}
	select {
	case c.order.changed <- struct{}{}:
	default:
	}
	if concerned, changed := c.mesh.SetRanks(c.order.Ranks()); changed {
		c.decideLater(concerned)
		c.metrics.reordered.Inc()
		c.log.Info("order of the nearest clusters changed", "key", c.orderText(slices.Collect(maps.Keys(c.order.Distances()))))
	}
}

// decideLater has services decided on anew between the changes of clusters. What
// they hold is in the maps, only not in the order wanted now, so nobody waits for
// it and no acknowledgement depends on it.
func (c *core) decideLater(names []lb.ServiceName) {
	c.later = append(c.later, names...)
	slices.SortFunc(c.later, lb.ServiceName.Compare)
	c.later = slices.Compact(c.later)
}

// more is ready while services wait to be decided on anew.
func (c *core) more() <-chan struct{} {
	if len(c.later) == 0 {
		return nil
	}
	return c.always
}

// decideSome decides on some of them, for no longer than a piece of a cluster's
// changes takes.
func (c *core) decideSome() {
	for begin := time.Now(); len(c.later) > 0 && time.Since(begin) < pieceTime; c.later = c.later[1:] {
		c.set(c.later[0])
	}
}

// orderText names clusters in the order of their distance, and groups those that
// count as equally near.
func (c *core) orderText(names []string) string {
	rank := func(name string) int {
		if r, known := c.order.Ranks()[name]; known {
			return int(r)
		}
		return len(c.order.Ranks()) // behind all
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b)) })
	var text strings.Builder
	for i, name := range names {
		switch {
		case i > 0 && rank(name) == rank(names[i-1]):
			text.WriteString(", ")
		case i > 0:
			text.WriteString("; then ")
		}
		text.WriteString(name + " " + c.distanceText(name))
	}
	return text.String()
}

func (c *core) distanceText(name string) string {
	if ns := c.order.Distance(name); ns > 0 {
		return fmt.Sprintf("(%.1fms)", float64(ns)/1e6)
	}
	return "(unknown: no probe was answered)"
}

// nearest says in which order a service takes remote clusters, and why, or "" if
// it does not ask for the nearest first.
func (c *core) nearest(s *lb.Service) string {
	if !s.Policy.Nearest() {
		return ""
	}
	var names []string
	for _, b := range s.Backends {
		if !b.Local && s.IsNearest(b.Cluster) && !slices.Contains(names, b.Cluster) {
			names = append(names, b.Cluster)
		}
	}
	return c.orderText(names)
}

// unordered says so if a service wants an order that this node does not know.
func (c *core) unordered(s *lb.Service) []string {
	if c.cfg.Probe || !s.Policy.Nearest() {
		return nil
	}
	return []string{"annotation clustermesh.io/tiers: \"nearest\" means all other clusters alike on this node, because nothing is probed here; remove --probe=false"}
}

// keepOrder writes the file after changes until ctx ends.
func (a *Agent) keepOrder(ctx context.Context) error {
	return a.keep(ctx, orderFile, a.core.order.changed, func(c *core) any {
		return c.order.Distances()
	})
}
