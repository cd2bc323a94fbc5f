// Package report is what an agent may tell the apiserver of its own cluster: how
// its node sees each cluster, and which markers its maps have reached. It is
// the only thing that anybody may tell an apiserver. The Go code of the messages
// is generated from report.proto.
//
// The rest is pure: it bounds what came in before anybody looks at it.
package report

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

//go:generate protoc --plugin=protoc-gen-go=../../bin/protoc-gen-go --plugin=protoc-gen-go-grpc=../../bin/protoc-gen-go-grpc --proto_path=../.. --go_out=../.. --go_opt=paths=source_relative --go-grpc_out=../.. --go-grpc_opt=paths=source_relative kvstore/report/report.proto

// What one report may be.
const (
	// MaxBytes is the size of an encoded report; one more is not decoded.
	MaxBytes = 60 << 10
	// MaxClusters is how many clusters it may speak of: all of the largest mesh.
	MaxClusters = schema.MaxClusters511
	// MaxText bounds an error or a remedy.
	MaxText = 300
	maxName = 253
)

// States are the states that a cluster can be in, as they are spelled.
func States() []string {
	return []string{"never-connected", "connecting", "syncing", "synced", "stale", "refused", "draining", "removed"}
}

var nodeName = regexp.MustCompile(`^[a-z0-9A-Z]([-a-z0-9A-Z_.]{0,251}[a-z0-9A-Z])?$`)

// ValidateNode checks the name of a node.
func ValidateNode(name string) error {
	if len(name) > maxName || !nodeName.MatchString(name) {
		return fmt.Errorf("node %q: not a node name; give the Kubernetes node's name", clip(name, 64))
	}
	return nil
}

// Check refuses a report that is not one an agent makes, naming the field.
func Check(r *NodeReport) error {
	if err := ValidateNode(r.GetNode()); err != nil {
		return err
	}
	if n := len(r.GetClusters()); n > MaxClusters {
		return fmt.Errorf("clusters: %d, at most %d", n, MaxClusters)
	}
	if err := checkTexts(map[string]string{"version": r.GetVersion(), "fault": r.GetFault()}); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, c := range r.GetClusters() {
		if err := checkCluster(c); err != nil {
			return fmt.Errorf("cluster %q: %w", clip(c.GetName(), 64), err)
		}
		if seen[c.GetName()] {
			return fmt.Errorf("cluster %q: it occurs twice", c.GetName())
		}
		seen[c.GetName()] = true
	}
	return nil
}

func checkCluster(c *ClusterReport) error {
	if err := schema.ValidateClusterName(c.GetName()); err != nil {
		return err
	}
	if !slices.Contains(States(), c.GetState()) {
		return fmt.Errorf("state %q: not known", clip(c.GetState(), 64))
	}
	for name, v := range map[string]float64{"age": c.GetAgeSeconds(), "lag p50": c.GetLagP50Seconds(), "lag p99": c.GetLagP99Seconds()} {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("%s: %v is no number of seconds", name, v)
		}
	}
	return checkTexts(map[string]string{"last error": c.GetLastError(), "remedy": c.GetRemedy()})
}

func checkTexts(texts map[string]string) error {
	for name, text := range texts {
		if len(text) > MaxText || text != Text(text) {
			return fmt.Errorf("%s: longer than %d bytes, or not printable", name, MaxText)
		}
	}
	return nil
}

// Text makes any text one that a report may hold: printable and not too long.
func Text(s string) string { return clip(printable(s), MaxText) }

// printable replaces what would act on a terminal or break a line.
func printable(s string) string {
	out := []rune{}
	for _, r := range s {
		if r < ' ' || r > '~' {
			r = '?'
		}
		out = append(out, r)
	}
	return string(out)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n -= len("..."); n > 0 && !utf8.RuneStart(s[n]); n-- {
	}
	return s[:n] + "..."
}

// Mark is the wire's form of a marker.
func Mark(m schema.Marker) *Marker {
	return &Marker{Stamp: m.Micros, Incarnation: m.Incarnation, Begun: m.Begun}
}

// Schema is the marker that m stands for; that of nil covers nothing.
func (m *Marker) Schema() schema.Marker {
	return schema.Marker{Stamp: schema.Stamp{Micros: m.GetStamp(), Incarnation: m.GetIncarnation()}, Begun: m.GetBegun()}
}
