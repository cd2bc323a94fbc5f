package main

import (
	"fmt"
	"io"

	"github.com/clustermesh/clustermesh/agent/api"
)

// distanceView is how far a remote cluster is: its nodes' path, empty if they are
// not probed, the damped round trip time that clusters are ordered by, and the
// cluster's place in that order from 1, or 0 while it is not known.
type distanceView struct {
	NodePath        string  `json:"nodePath"`
	NodeRTTSeconds  float64 `json:"nodeRTTSeconds"`
	DistanceSeconds float64 `json:"distanceSeconds"`
	Rank            uint32  `json:"rank"`
}

func newDistance(c *api.Cluster) distanceView {
	return distanceView{c.GetNodePath(), c.GetNodeRttSeconds(), c.GetDistanceSeconds(), c.GetRank()}
}

// String is what comes behind the data path's state.
func (d distanceView) String() (text string) {
	switch {
	case d.NodePath == "ok" && d.NodeRTTSeconds > 0:
		text = fmt.Sprintf("; nodes ok, %.1fms", 1000*d.NodeRTTSeconds)
	case d.NodePath != "":
		text = "; nodes " + d.NodePath
	}
	if d.Rank > 0 {
		text += fmt.Sprintf("; %d by distance", d.Rank)
	}
	return text
}

// printNearest shows the order of a service's clusters, if it asks for one.
func printNearest(w io.Writer, order string) {
	if order != "" {
		fmt.Fprintf(w, "  nearest: %s\n", order)
	}
}
