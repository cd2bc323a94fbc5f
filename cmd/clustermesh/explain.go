package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/agent/api"
)

func newExplain(a *app) *cobra.Command {
	var apiservers []string
	c := &cobra.Command{
		Use:   "explain NAMESPACE/NAME | ADDRESS[:PORT]",
		Short: "Say why a service or address is used as it is, and what was refused",
		Long: `explain shows, for each frontend of a service, every backend with the cluster it
comes from, its tier, weight and share, the filters that kept or dropped it, and
why; what each cluster adds, from which revision of its store and since when; why
the service is not global, not shared, in one cluster only, or empty; what of it
was refused, and what to do about that. For an address it shows the services that
have it as a frontend or a backend, and who may not name it.

With --apiserver-socket it also shows on which nodes of that cluster all that the
clusters of these apiservers say is in the maps.`,
		Example: "  clustermesh explain default/rebel-base --watch\n  clustermesh explain 10.3.0.17:8080 -o json\n  clustermesh explain default/rebel-base --apiserver-socket east.sock --apiserver-socket west.sock",
		Args:    cobra.ExactArgs(1),
	}
	completeFrom(c, serviceNames)
	c.Flags().StringSliceVar(&apiservers, "apiserver-socket", nil, "unix socket of an apiserver's local API, to show on which of its cluster's nodes it is in the maps; may be repeated")
	return a.askAgent(watchFlags(c), func(ctx context.Context, agent api.AgentClient, args []string) error {
		request, err := explainRequest(args[0])
		if err != nil {
			return err
		}
		r, err := agent.Explain(ctx, request)
		if err != nil {
			return err
		}
		v := newExplanation(r)
		if len(apiservers) > 0 {
			if v.Nodes, err = a.presence(ctx, apiservers); err != nil {
				return err
			}
		}
		return a.show(v, v.table)
	})
}

// explainRequest reads namespace/name, an address, or an address and port.
func explainRequest(text string) (*api.ExplainRequest, error) {
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return &api.ExplainRequest{Address: ap.Addr().String(), Port: uint32(ap.Port())}, nil
	}
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return &api.ExplainRequest{Address: addr.String()}, nil
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, usage(fmt.Errorf("%q: neither of the form namespace/name nor an address such as 10.3.0.17 or 10.3.0.17:8080", text))
	}
	return &api.ExplainRequest{Namespace: namespace, Name: name}, nil
}

func newRelease(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "release CLUSTER",
		Short: "Let go of backends that a cluster withdrew all at once",
		Long: `release ends the hold on backends that a remote cluster withdrew all at once
(see --withdrawal-brake-percent of clustermesh-agent). They leave this node's
maps now. clustermesh status says what is held. A cluster that is refused because
it announces another id than before is let in with that, once.`,
		Example: "  clustermesh release west",
		Args:    cobra.ExactArgs(1),
	}
	completeFrom(c, remoteNames)
	return a.askAgent(c, func(ctx context.Context, agent api.AgentClient, args []string) error {
		r, err := agent.Release(ctx, &api.ReleaseRequest{Cluster: args[0]})
		if err != nil {
			return err
		}
		if r.GetReleased() == 0 {
			return fmt.Errorf("nothing of cluster %q is held on this node; see clustermesh status", args[0])
		}
		v := releaseView{Cluster: args[0], Released: r.GetReleased()}
		return a.show(v, v.table)
	})
}
