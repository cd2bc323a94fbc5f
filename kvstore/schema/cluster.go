package schema

import (
	"fmt"
	"strconv"
)

// The two legal values of the largest cluster id. All clusters of a mesh agree
// on one, because it decides how many bits of an identity name the cluster.
const (
	MaxClusters255 = 255
	MaxClusters511 = 511
)

// The values of [Capabilities].EndpointSlicesExportMode; "" means services only.
const (
	ModeServicesAndEndpointSlices = "services-and-endpointslices"
	ModeEndpointSlicesOnly        = "endpointslices-only"
)

const maxClusterName = 32

// ValidateClusterName checks a cluster's name as Cilium does: 1 to 32 lower
// case letters, digits and '-', starting and ending with a letter or digit.
// "default" is refused, since Cilium keeps it for clusters without an id. The
// error is an *[Error].
func ValidateClusterName(name string) error {
	if name == "default" {
		return newError("", "cluster name", name, "it stands for a cluster outside any mesh; choose another name")
	}
	ok := len(name) >= 1 && len(name) <= maxClusterName
	for i := 0; ok && i < len(name); i++ {
		edge := i == 0 || i == len(name)-1
		ok = isLowerAlnum(name[i]) || name[i] == '-' && !edge
	}
	if !ok {
		return newError("", "cluster name", name,
			"use 1 to 32 lower case letters, digits or '-', starting and ending with a letter or digit")
	}
	return nil
}

// ValidateClusterID checks that max is one of the two legal values and that id
// lies in 1..max. The error is an *[Error].
func ValidateClusterID(id, max uint32) error {
	if max != MaxClusters255 && max != MaxClusters511 {
		return newError("", "maxConnectedClusters", decimal(max), "set it to 255 or 511, the same in all clusters")
	}
	if id == 0 {
		return newError("", "cluster id", "0", "0 is reserved; give each cluster its own id from 1 to "+decimal(max))
	}
	if id > max {
		return newError("", "cluster id", decimal(id), "give each cluster its own id from 1 to "+decimal(max))
	}
	return nil
}

// IdentityRange returns the first and last numeric identity of cluster id. An
// identity has 24 bits: the cluster's id above 16 bits (15 if maxClusters is
// 511) of the cluster's own. Cluster 0 starts above the reserved identities.
func IdentityRange(id, maxClusters uint32) (first, last uint32) {
	shift := 16
	if maxClusters == MaxClusters511 {
		shift = 15
	}
	first = id << shift
	last = first + 1<<shift - 1
	if id == 0 {
		first = reservedIdentities
	}
	return first, last
}

// reservedIdentities is how many numeric identities mean the same in every
// cluster (1 host, 2 world, 6 remote-node, ...).
const reservedIdentities = 256

// CheckCompatible reports whether a cluster that announces remote can be
// meshed with the local one, whose largest cluster id is max: remote needs a
// legal id that is not local's own, the same identity layout, and a known
// export mode. As in Cilium, a reader with 255 does not look at the remote's
// limit; the identities of a remote with 511 then lie outside the range that is
// expected of it and are refused one by one. Two remotes with one id are for
// the caller to notice. The error is an *[Error], perhaps wrapped.
func CheckCompatible(local, remote ClusterConfig, max uint32) error {
	if err := ValidateClusterID(remote.ID, max); err != nil {
		return fmt.Errorf("check the remote cluster's configuration: %w", err)
	}
	if remote.ID == local.ID {
		return newError("", "cluster id", decimal(remote.ID), "it is the local cluster's own; give one of the two another id")
	}
	if got := remote.Capabilities.MaxConnectedClusters; max == MaxClusters511 && got != max {
		return newError("", "maxConnectedClusters", decimal(got), "the local cluster has 511; set the same in all clusters")
	}
	return checkExportMode("", remote.Capabilities.EndpointSlicesExportMode)
}

// ReadServicesFrom returns the kind of entry from which a reader learns the
// backends of a cluster's services, given what the cluster announces:
// [KindEndpointSlice] if it publishes slices, else [KindService]. Slices are
// preferred where both exist, as they are smaller, say more of each endpoint and
// outlive the other kind in Cilium's plans.
func ReadServicesFrom(c ClusterConfig) Kind {
	if c.Capabilities.EndpointSlicesExportMode == "" {
		return KindService
	}
	return KindEndpointSlice
}

// PublishedKinds returns Cilium's kinds that a cluster publishes according to
// its announcement, in the order in which they are declared. A reader may wait
// for the canary of each of them, if the cluster announces canaries, and for
// no other; an exporter must write them even for kinds without an entry, and
// for service exports even if these are announced as disabled.
func PublishedKinds(c ClusterConfig) []Kind {
	mode := c.Capabilities.EndpointSlicesExportMode
	var kinds []Kind
	if mode != ModeEndpointSlicesOnly {
		kinds = append(kinds, KindService)
	}
	kinds = append(kinds, KindNode, KindIdentity, KindIP)
	if mode != "" {
		kinds = append(kinds, KindEndpointSlice)
	}
	if c.Capabilities.ServiceExportsEnabled != nil {
		kinds = append(kinds, KindServiceExport)
	}
	return kinds
}

func checkExportMode(key, mode string) error {
	switch mode {
	case "", ModeServicesAndEndpointSlices, ModeEndpointSlicesOnly:
		return nil
	}
	return newError(key, "capabilities/endpointSlicesExportMode", mode,
		"known are \"\", "+ModeServicesAndEndpointSlices+" and "+ModeEndpointSlicesOnly+"; upgrade the reading cluster first")
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
