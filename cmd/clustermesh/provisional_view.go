package main

import (
	"fmt"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// provisionalView counts what is in use of a cluster that it has not said in the
// present connection, and the services that have some of it. What a cluster says
// does not count it.
type provisionalView struct {
	ProvisionalServices uint32 `json:"provisionalServices"`
	ProvisionalBackends uint32 `json:"provisionalBackends"`
}

// lines tell what the count means, if there is anything to count.
func (v provisionalView) lines(cluster string) []string {
	if v.ProvisionalBackends == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s: %s provisional, of %s: in use as known before the agent's restart or the last reconnect, until the cluster is synced and has said what it has now",
		cluster, cli.Count(v.ProvisionalBackends, "backend is", "backends are"), cli.Count(v.ProvisionalServices, "service", ""))}
}
