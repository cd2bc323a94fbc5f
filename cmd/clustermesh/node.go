package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/agent/api"
)

// defaultAPISocket is where an agent serves its local API unless told
// otherwise.
const defaultAPISocket = "/var/run/clustermesh/agent.sock"

// nodeCommands are the commands that ask the agent of this node.
func nodeCommands() []*cobra.Command {
	return []*cobra.Command{statusCommand(), servicesCommand(), mapsCommand()}
}

// askAgent adds the flags that all of them share and runs ask with a client.
func askAgent(c *cobra.Command, ask func(ctx context.Context, agent api.AgentClient, args []string, out output) error) *cobra.Command {
	socket := c.Flags().String("api-socket", envOr("CLUSTERMESH_API_SOCKET", defaultAPISocket), "unix socket of the agent's local API")
	format := c.Flags().StringP("output", "o", "table", "output format: table or json")
	c.RunE = func(c *cobra.Command, args []string) error {
		if *format != "table" && *format != "json" {
			return usageError{fmt.Errorf("--output %q: not known; use table or json", *format)}
		}
		conn, err := grpc.NewClient("unix:"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return fmt.Errorf("open --api-socket %q: %w", *socket, err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
		defer cancel()
		if err := ask(ctx, api.NewAgentClient(conn), args, output{c.OutOrStdout(), *format == "json"}); err != nil {
			return fmt.Errorf("ask the agent at %q: %s; check that clustermesh-agent runs on this node and that you are root", *socket, status.Convert(err).Message())
		}
		return nil
	}
	return c
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// output is where and how a command answers.
type output struct {
	w    io.Writer
	json bool
}

// show prints v as JSON, or calls table with a writer that aligns columns
// separated by tabs.
func (o output) show(v any, table func(w io.Writer)) error {
	if o.json {
		e := json.NewEncoder(o.w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(o.w, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

func statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show how this node sees each cluster and its own data path",
		Example: "  clustermesh status\n  clustermesh status -o json",
		Args:    cobra.NoArgs,
	}
	return askAgent(c, func(ctx context.Context, agent api.AgentClient, _ []string, out output) error {
		r, err := agent.Status(ctx, &api.StatusRequest{})
		if err != nil {
			return err
		}
		s := newStatus(r)
		return out.show(s, s.table)
	})
}

func servicesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "services [NAMESPACE/NAME]",
		Short:   "List global services, each backend, and why it is used or not",
		Example: "  clustermesh services\n  clustermesh services default/rebel-base -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	return askAgent(c, func(ctx context.Context, agent api.AgentClient, args []string, out output) error {
		request := &api.ServicesRequest{}
		if len(args) == 1 {
			namespace, name, ok := strings.Cut(args[0], "/")
			if !ok || namespace == "" || name == "" {
				return fmt.Errorf("service %q: not of the form namespace/name", args[0])
			}
			request.Namespace, request.Name = namespace, name
		}
		r, err := agent.Services(ctx, request)
		if err != nil {
			return err
		}
		if len(args) == 1 && len(r.GetServices()) == 0 {
			return fmt.Errorf("service %q is not a global service of this cluster; check the annotation service.cilium.io/global on it and `clustermesh status`", args[0])
		}
		list := newServices(r)
		return out.show(list, list.table)
	})
}

func mapsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "maps",
		Short:   "List what this node's kernel holds, read back from the eBPF maps",
		Example: "  clustermesh maps\n  clustermesh maps -o json",
		Args:    cobra.NoArgs,
	}
	return askAgent(c, func(ctx context.Context, agent api.AgentClient, _ []string, out output) error {
		r, err := agent.Maps(ctx, &api.MapsRequest{})
		if err != nil {
			return err
		}
		list := newMaps(r)
		return out.show(list, list.table)
	})
}
