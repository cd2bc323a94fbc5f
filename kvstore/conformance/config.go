package conformance

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

const configRemedy = "correct the cluster's configuration (--cluster-id, --max-connected-clusters) and restart its apiserver; if the cluster speaks a newer version, upgrade the readers first"

func configChecks() []Check {
	return []Check{{
		ID: "cluster-name", Group: "config", Title: "the cluster's name is valid",
		Why:    "the client ignores the cluster's file with an error in its log",
		Remedy: "rename the cluster and its file: 1 to 32 lower case letters, digits or '-', starting and ending with a letter or digit",
		run:    checkClusterName,
	}, {
		ID: "read-config", Group: "config", Title: "the cluster's announcement may be read", Needs: []string{"etcd-api"},
		Why:    "the client polls for 3 minutes, reconnects, and so on; the cluster never becomes ready",
		Remedy: nameRemedy,
		run:    checkReadConfig,
	}, {
		ID: "config-exists", Group: "config", Title: "the cluster announces itself", Needs: []string{"read-config"},
		Why:    "the client polls for 3 minutes, reconnects, and so on; the cluster never becomes ready",
		Remedy: "check that the cluster calls itself CLUSTER, as the client's file is named, and that its apiserver is ready",
		run:    checkConfigExists,
	}, {
		ID: "config-json", Group: "config", Title: "the announcement is JSON", Needs: []string{"config-exists"},
		Why: "the client stays connected and is never ready, without an error in its log", Remedy: configRemedy,
		run: checkConfigJSON,
	}, {
		ID: "config-id-range", Group: "config", Title: "the announced id is legal", Needs: []string{"config-json"},
		Why: "the client refuses the cluster: ClusterID is reserved or not supported", Remedy: configRemedy,
		run: checkConfigID,
	}, {
		ID: "config-id-own", Group: "config", Title: "the announced id is not the client's own", Needs: []string{"config-json"},
		Why:    "the client refuses the cluster: clusterID is assigned to the local cluster",
		Remedy: "give one of the two clusters another id; its workloads must be restarted then",
		run:    checkConfigOwnID,
	}, {
		ID: "config-max-clusters", Group: "config", Title: "both clusters divide identities alike", Needs: []string{"config-json"},
		Why:    "a client with 511 refuses the cluster: mismatched MaxConnectedClusters; one with 255 drops its identities",
		Remedy: "set max-connected-clusters to the same value, 255 or 511, in all clusters",
		run:    checkConfigMax,
	}, {
		ID: "config-export-mode", Group: "config", Title: "the mode of exporting endpoint slices is known", Needs: []string{"config-json"},
		Why: "the client refuses the cluster", Remedy: configRemedy,
		run: checkConfigMode,
	}}
}

func checkClusterName(_ context.Context, s *session) finding {
	if err := schema.ValidateClusterName(s.target.Cluster); err != nil {
		return fail("%v", err)
	}
	return pass("%s", s.target.Cluster)
}

func checkReadConfig(ctx context.Context, s *session) finding {
	reply, err := s.ask(ctx, s.configRange(), 0, 0)
	if err != nil {
		return fail("get %s: %s", s.configRange(), text(err))
	}
	if len(reply.Kvs) > 0 {
		s.announced = reply.Kvs[0].Value
	}
	return pass("%s", s.configRange())
}

func checkConfigExists(_ context.Context, s *session) finding {
	if s.announced == nil {
		return fail("%s does not exist", s.configRange())
	}
	return pass("%s", s.announced)
}

func checkConfigJSON(_ context.Context, s *session) finding {
	var c schema.ClusterConfig
	if err := json.Unmarshal(s.announced, &c); err != nil {
		return fail("%v: %s", err, s.announced)
	}
	s.config = c
	return pass("%s", count(len(s.announced), "byte"))
}

func checkConfigID(_ context.Context, s *session) finding {
	if err := schema.ValidateClusterID(s.config.ID, s.maxClusters()); err != nil {
		return fail("%v", err)
	}
	return pass("%d", s.config.ID)
}

func checkConfigOwnID(_ context.Context, s *session) finding {
	// By such a certificate a cluster's own clients read it, or others at its relay.
	own := s.role == certs.Role{Kind: certs.Local, Cluster: s.target.Cluster}
	switch {
	case s.opts.OwnID == 0:
		return skip("the client's own id is not given")
	case own && s.opts.OwnID != s.config.ID:
		return fail("it is %d there and %d here", s.config.ID, s.opts.OwnID).because("the own cluster announces another id than this node has",
			"give agents and apiserver of CLUSTER the same --cluster-id")
	case own:
		return pass("%d, of the own cluster", s.config.ID)
	case s.opts.OwnID == s.config.ID:
		return fail("both have id %d", s.config.ID)
	}
	return pass("%d here, %d there", s.opts.OwnID, s.config.ID)
}

func checkConfigMax(_ context.Context, s *session) finding {
	there := s.config.Capabilities.MaxConnectedClusters
	legal := there == 0 || there == schema.MaxClusters255 || there == schema.MaxClusters511
	if !legal || s.maxClusters() == schema.MaxClusters511 && there != schema.MaxClusters511 ||
		s.maxClusters() == schema.MaxClusters255 && there == schema.MaxClusters511 {
		return fail("%d here, %d there", s.maxClusters(), there)
	}
	return pass("%d", s.maxClusters())
}

func checkConfigMode(_ context.Context, s *session) finding {
	mode := s.config.Capabilities.EndpointSlicesExportMode
	switch mode {
	case "":
		return pass("services only")
	case schema.ModeServicesAndEndpointSlices, schema.ModeEndpointSlicesOnly:
		return pass("%s", mode)
	}
	return fail("%q is not known", mode)
}

func canaryChecks() []Check {
	checks := []Check{{
		ID: "config-cached", Group: "sync", Title: "entries are where the announcement says", Needs: []string{"config-json", "read-synced"},
		Why:    "the client looks below the other prefix and waits for ever",
		Remedy: "announce cached if and only if entries are below cilium/cache/, as a relay (KVStoreMesh) has them",
		run:    checkCached,
	}, {
		ID: "canary-spelling", Group: "sync", Title: "canaries are spelled as clients expect", Needs: []string{"read-synced"},
		Why:    "the client ignores the canary and waits for the right one for ever",
		Remedy: "write canaries as <prefix of the kind>/v1 without a cluster, /id or /default behind it",
		run:    checkCanarySpelling,
	}}
	for _, k := range kinds() {
		checks = append(checks, Check{
			ID: "canary-" + k.String(), Group: "sync", Title: "the list of " + k.String() + " is declared complete", Needs: []string{"config-cached"},
			Why:    "clients that read this kind wait for ever: the cluster never becomes ready",
			Remedy: "check that CLUSTER's apiserver is ready and its log; every announced kind needs its canary, also if it is empty",
			run:    func(_ context.Context, s *session) finding { return s.checkCanary(k) },
		})
	}
	return checks
}

// kinds are all kinds of entries that Cilium's clients read. Addresses come
// before what they refer to, which exists before them: a cluster that grows
// between two listings then does not look broken.
func kinds() []schema.Kind {
	return []schema.Kind{schema.KindService, schema.KindIP, schema.KindIdentity, schema.KindNode, schema.KindEndpointSlice, schema.KindServiceExport}
}

func (s *session) publishes(k schema.Kind) bool {
	for _, published := range schema.PublishedKinds(s.config) {
		if published == k {
			return true
		}
	}
	return false
}

func checkCached(_ context.Context, s *session) finding {
	live, cached := 0, 0
	for _, c := range s.canaries {
		if strings.HasPrefix(c, "cilium/cache/") {
			cached++
		} else {
			live++
		}
	}
	if s.cached() && cached == 0 && live > 0 || !s.cached() && live == 0 && cached > 0 {
		return fail("announced cached: %t; canaries: %d live, %d cached", s.cached(), live, cached)
	}
	return pass("cached: %t", s.cached())
}

func checkCanarySpelling(_ context.Context, s *session) finding {
	for _, c := range s.canaries {
		parts := strings.Split(c, "/")
		if len(parts) != 4 || parts[0] != "cilium" || parts[1] != "state" && parts[1] != "cache" || parts[2] == "" || parts[3] != "v1" {
			return fail("%s%s", s.canaryRange().start, c)
		}
	}
	return pass("%s", count(len(s.canaries), "canary"))
}

func (s *session) checkCanary(k schema.Kind) finding {
	switch {
	case !s.config.Capabilities.SyncedCanaries:
		return skip("the cluster announces no canaries: clients do not wait")
	case !s.publishes(k):
		return skip("the cluster does not announce this kind")
	}
	key := schema.CanaryKey(k, s.target.Cluster, s.cached())
	for _, c := range s.canaries {
		if s.canaryRange().start+c == key {
			return pass("%s", key)
		}
	}
	return fail("%s does not exist", key)
}
