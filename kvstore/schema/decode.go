package schema

import (
	"encoding/json"
	"net/netip"
	"strings"
)

func checkSize(key string, value []byte, l Limits) error {
	if len(value) > l.MaxValueBytes {
		return tooMany(key, "value bytes", len(value), l.MaxValueBytes)
	}
	return nil
}

func tooMany(key, field string, n, limit int) *Error {
	return newError(key, field, decimal(uint32(n)), "at most "+decimal(uint32(limit))+" are accepted")
}

// DecodeService decodes a service.
func DecodeService(src Source, key string, value []byte, l Limits) (*Service, error) {
	ns, name, err := ParseServiceKey(KindService, src.Cluster, src.Cached, key)
	if err != nil {
		return nil, err
	}
	if err := checkSize(key, value, l); err != nil {
		return nil, err
	}
	var s Service
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, newError(key, "value", err.Error(), "must be JSON")
	}
	return &s, checkOwner(src, key, ns, name, s.Cluster, s.ClusterID, s.Namespace, s.Name)
}

func checkOwner(src Source, key, ns, name, gotCluster string, gotID uint32, gotNS, gotName string) error {
	switch {
	case gotCluster != src.Cluster:
		return newError(key, "cluster", gotCluster, "must be "+src.Cluster)
	case gotNS != ns:
		return newError(key, "namespace", gotNS, "must be "+ns)
	case gotName != name:
		return newError(key, "name", gotName, "must be "+name)
	case gotID != src.ClusterID:
		return newError(key, "clusterID", decimal(gotID), "must be "+decimal(src.ClusterID))
	}
	return nil
}

// DecodeLocalService decodes a local service.
func DecodeLocalService(src Source, key string, value []byte, l Limits) (*LocalService, error) {
	ns, name, err := ParseServiceKey(KindLocalService, src.Cluster, false, key)
	if err != nil {
		return nil, err
	}
	if err := checkSize(key, value, l); err != nil {
		return nil, err
	}
	var s LocalService
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, newError(key, "value", err.Error(), "must be JSON")
	}
	return &s, checkOwner(src, key, ns, name, s.Cluster, s.ClusterID, s.Namespace, s.Name)
}

// DecodeNode decodes a node.
func DecodeNode(src Source, key string, value []byte, l Limits) (*Node, error) {
	name, err := nameIn(KindNode, src, key)
	if err != nil {
		return nil, err
	}
	if err := checkSize(key, value, l); err != nil {
		return nil, err
	}
	var n Node
	if err := json.Unmarshal(value, &n); err != nil {
		return nil, newError(key, "value", err.Error(), "must be JSON")
	}
	return &n, checkOwner(src, key, "", name, n.Cluster, n.ClusterID, "", n.Name)
}

// DecodeIPEntry decodes an address entry.
func DecodeIPEntry(src Source, maxClusters uint32, key string, value []byte, l Limits) (*IPEntry, error) {
	text, err := nameIn(KindIP, src, key)
	if err != nil {
		return nil, err
	}
	if err := checkSize(key, value, l); err != nil {
		return nil, err
	}
	var e IPEntry
	if err := json.Unmarshal(value, &e); err != nil {
		return nil, newError(key, "value", err.Error(), "must be JSON")
	}
	if a, err := netip.ParseAddr(e.IP); err != nil || !strings.HasPrefix(text, a.String()) {
		return nil, newError(key, "IP", e.IP, "must be "+text)
	}
	first, last := IdentityRange(src.ClusterID, maxClusters)
	if e.ID >= reservedIdentities && (e.ID < first || e.ID > last) {
		return nil, newError(key, "ID", decimal(e.ID), "must be in the cluster's range")
	}
	return &e, nil
}

// DecodeClusterConfig decodes the configuration that the named cluster
// announces.
func DecodeClusterConfig(cluster string, value []byte) (ClusterConfig, error) {
	key := ClusterConfigKey(cluster)
	var c ClusterConfig
	if err := json.Unmarshal(value, &c); err != nil {
		return ClusterConfig{}, newError(key, "value", err.Error(), "must be JSON")
	}
	return c, checkExportMode(key, c.Capabilities.EndpointSlicesExportMode)
}
