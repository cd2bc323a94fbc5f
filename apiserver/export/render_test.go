package export_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// render prints a record for a golden file. Every value is first read as a
// remote cluster would: one that readers refuse is no golden value.
func render(t *testing.T, config export.Config, r export.Record) string {
	t.Helper()
	slice, err := read(config, r)
	if err != nil {
		t.Errorf("readers refuse %s: %v", r.Key, err)
	}
	if slice != nil {
		return r.Key + "\n" + sliceText(slice)
	}
	return r.String()
}

// read decodes a record as its readers do, and returns it if it is a slice.
func read(config export.Config, r export.Record) (slice *schema.EndpointSlice, err error) {
	if r.Value == nil {
		return nil, nil
	}
	src, limits := schema.Source{Cluster: config.Cluster, ClusterID: config.ClusterID}, schema.DefaultLimits()
	switch r.Kind {
	case schema.KindService:
		_, err = schema.DecodeService(src, r.Key, r.Value, limits)
	case schema.KindLocalService:
		_, err = schema.DecodeLocalService(src, r.Key, r.Value, limits)
	case schema.KindNode:
		_, err = schema.DecodeNode(src, r.Key, r.Value, limits)
	case schema.KindIdentity:
		_, err = schema.DecodeIdentity(src, config.MaxClusters, r.Key, r.Value, limits)
	case schema.KindIP:
		_, err = schema.DecodeIPEntry(src, config.MaxClusters, r.Key, r.Value, limits)
	case schema.KindServiceExport:
		_, err = schema.DecodeServiceExport(src, r.Key, r.Value, limits)
	case schema.KindEndpointSlice:
		return new(schema.SliceCodec).Decode(src, r.Key, r.Value, limits)
	}
	return nil, err
}

// sliceText prints a decoded slice, one endpoint and port per line.
func sliceText(s *schema.EndpointSlice) string {
	var b strings.Builder
	fmt.Fprintf(&b, "zstd %s %d %s/%s %s", s.Cluster, s.ClusterID, s.Namespace, s.Name, s.AddressType)
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		fmt.Fprintf(&b, "\n  label %s=%s", key, s.Labels[key])
	}
	for _, key := range slices.Sorted(maps.Keys(s.Annotations)) {
		fmt.Fprintf(&b, "\n  annotation %s=%s", key, s.Annotations[key])
	}
	for _, e := range s.Endpoints {
		fmt.Fprintf(&b, "\n  endpoint %v%s%s%s", e.Addresses,
			condition("ready", e.Ready), condition("serving", e.Serving), condition("terminating", e.Terminating))
		fmt.Fprint(&b, member("hostname", e.Hostname), member("node", e.NodeName), member("zone", e.Zone), member("for", strings.Join(e.ForZones, ",")))
	}
	for _, p := range s.Ports {
		fmt.Fprintf(&b, "\n  port %q %s %d%s", p.Name, p.Protocol, p.Port, member("app", p.AppProtocol))
	}
	return b.String()
}

func condition(what string, c schema.Condition) string {
	return map[schema.Condition]string{schema.ConditionTrue: " " + what, schema.ConditionFalse: " not-" + what}[c]
}

func member(what, value string) string {
	if value == "" {
		return ""
	}
	return " " + what + "=" + value
}
