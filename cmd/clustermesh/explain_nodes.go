package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/api"
)

// presenceLimit is how long nodes are waited for that have not yet all that
// their clusters say.
const presenceLimit = 5 * time.Second

// presenceView says whether a node has in its maps what the clusters asked say
// now, and so what they say of the services that are explained.
type presenceView struct {
	Cluster string   `json:"cluster"` // that the node is of
	Node    string   `json:"node"`
	State   string   `json:"state"` // of its reports
	InMaps  bool     `json:"inMaps"`
	Behind  []string `json:"behind"` // a cluster and a reason each
}

// presence asks apiservers which of their nodes have what the clusters say, for
// which all of these stamp what they have published. Clusters whose apiserver is
// not among them are left out of it.
func (a *app) presence(ctx context.Context, apiservers []string) ([]presenceView, error) {
	o := &statusFlags{apiservers: apiservers, timeout: presenceLimit}
	waited, err := a.stampAndWait(ctx, o)
	if err != nil {
		return nil, err
	}
	lists := make([][]presenceView, len(apiservers))
	err = o.eachApiserver(func(i int, s apiserverSocket) error {
		r, err := s.client.Status(ctx, &api.StatusRequest{})
		for _, n := range r.GetNodes() {
			lists[i] = append(lists[i], waited.presenceOf(r.GetCluster(), n))
		}
		return err
	})
	return append([]presenceView{}, slices.Concat(lists...)...), err
}

func (v waitedView) presenceOf(cluster string, n *api.NodeStatus) presenceView {
	out := presenceView{Cluster: cluster, Node: n.GetName(), State: n.GetState(), Behind: []string{}}
	for _, b := range v.Behind {
		if b.In == cluster && b.Node == n.GetName() {
			out.Behind = append(out.Behind, b.Cluster+": "+b.Reason)
		}
	}
	out.InMaps = n.GetState() == "reporting" && len(out.Behind) == 0
	return out
}

func printPresence(w io.Writer, nodes []presenceView) {
	if len(nodes) == 0 {
		return
	}
	fmt.Fprintln(w, "NODE\tCLUSTER\tSTATE\tIN ITS MAPS\tBEHIND")
	for _, n := range nodes {
		behind := "-"
		if len(n.Behind) > 0 {
			behind = strings.Join(n.Behind, ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.Node, n.Cluster, n.State, yes(n.InMaps), behind)
	}
	fmt.Fprintln(w)
}
