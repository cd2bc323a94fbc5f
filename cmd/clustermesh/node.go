package main

import (
	"context"
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

// newNodeCommands are the commands that ask the agent of this node.
func newNodeCommands(a *app) []*cobra.Command {
	return []*cobra.Command{newStatusCommand(a), newServicesCommand(a), newMapsCommand(a), newMonitor(a)}
}

// asker puts one question to an agent and shows the answer.
type asker func(ctx context.Context, agent api.AgentClient, args []string) error

// askAgent adds the flag that all of them share and runs ask with a client.
func askAgent(c *cobra.Command, ask asker) *cobra.Command {
	return askAgentUntil(c, 10*time.Second, ask)
}

// askAgentUntil is askAgent with a limit of time of its own, 0 for none.
func askAgentUntil(c *cobra.Command, limit time.Duration, ask asker) *cobra.Command {
	socket := c.Flags().String("api-socket", envOr("CLUSTERMESH_API_SOCKET", defaultAPISocket), "unix socket of the agent's local API")
	c.RunE = func(c *cobra.Command, args []string) error {
		conn, err := grpc.NewClient("unix:"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return fmt.Errorf("open --api-socket %q: %w", *socket, err)
		}
		defer conn.Close()
		ctx := c.Context()
		if limit > 0 {
			bounded, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			ctx = bounded
		}
		err = ask(ctx, api.NewAgentClient(conn), args)
		if s, ok := status.FromError(err); err != nil && ok {
			return fmt.Errorf("ask the agent at %q: %s; check that clustermesh-agent runs on this node and that you are root", *socket, s.Message())
		}
		return err
	}
	return c
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// show prints v as JSON, or calls draw with a writer that aligns columns
// separated by tabs.
func (a *app) show(v any, draw func(w io.Writer)) error {
	if a.format == formatJSON {
		return a.print(v, table{})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	draw(w)
	return w.Flush()
}

func newStatusCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show how this node sees each cluster and its own data path",
		Example: "  clustermesh status\n  clustermesh status -o json",
		Args:    cobra.NoArgs,
	}
	return askAgent(c, func(ctx context.Context, agent api.AgentClient, _ []string) error {
		r, err := agent.Status(ctx, &api.StatusRequest{})
		if err != nil {
			return err
		}
		s := newStatus(r)
		return a.show(s, s.table)
	})
}

func newServicesCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "services [NAMESPACE/NAME]",
		Short:   "List global services, each backend, and why it is used or not",
		Example: "  clustermesh services\n  clustermesh services default/rebel-base -o wide",
		Args:    cobra.MaximumNArgs(1),
	}
	return askAgent(c, func(ctx context.Context, agent api.AgentClient, args []string) error {
		request := &api.ServicesRequest{}
		if len(args) == 1 {
			namespace, name, ok := strings.Cut(args[0], "/")
			if !ok || namespace == "" || name == "" {
				return usage(fmt.Errorf("service %q: not of the form namespace/name", args[0]))
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
		draw := list.table
		if a.format == formatWide {
			draw = list.wide
		}
		return a.show(list, draw)
	})
}

func newMapsCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "maps",
		Short:   "List what this node's kernel holds, read back from the eBPF maps",
		Example: "  clustermesh maps\n  clustermesh maps -o json",
		Args:    cobra.NoArgs,
	}
	return askAgent(c, func(ctx context.Context, agent api.AgentClient, _ []string) error {
		r, err := agent.Maps(ctx, &api.MapsRequest{})
		if err != nil {
			return err
		}
		list := newMaps(r)
		return a.show(list, list.table)
	})
}
