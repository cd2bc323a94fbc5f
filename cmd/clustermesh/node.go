package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
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

// askLimit bounds a question to the agent, which answers from memory.
const askLimit = 10 * time.Second

// asker puts one question to an agent and shows the answer.
type asker func(ctx context.Context, agent api.AgentClient, args []string) error

// askAgent adds the flag that all of them share and runs ask with a client.
func (a *app) askAgent(c *cobra.Command, ask asker) *cobra.Command {
	return a.askAgentUntil(c, askLimit, ask)
}

// askAgentUntil is askAgent with a limit of time of its own, 0 for none.
func (a *app) askAgentUntil(c *cobra.Command, limit time.Duration, ask asker) *cobra.Command {
	socket := socketFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		w, err := watchOf(c.Flags())
		if err != nil {
			return err
		}
		conn, agent, err := dialAgent(*socket)
		if err != nil {
			return err
		}
		defer conn.Close()
		once := func(ctx context.Context) error {
			if limit > 0 {
				waiting := a.progress("waiting for the agent at " + *socket)
				defer waiting.end()
				bounded, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				ctx = bounded
			}
			return agentError(*socket, ask(ctx, agent, args))
		}
		if w.on {
			return a.again(c.Context(), w, once)
		}
		return once(c.Context())
	}
	return c
}

func socketFlag(c *cobra.Command) *string {
	return c.Flags().String("api-socket", envOr("CLUSTERMESH_API_SOCKET", defaultAPISocket), "unix socket of the agent's local API")
}

// maxAnswer bounds an answer of the agent: 10,000 services of 10 backends take
// some 10 MB.
const maxAnswer = 512 << 20

// dialAgent opens no connection yet: the first question does.
func dialAgent(socket string) (*grpc.ClientConn, api.AgentClient, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, nil, fmt.Errorf("open --api-socket %q: %w", socket, err)
	}
	return conn, api.NewAgentClient(conn), nil
}

// shortAgentError is an error of the local API without its wrapping.
func shortAgentError(err error) error {
	if s, ok := status.FromError(err); err != nil && ok {
		return errors.New(s.Message())
	}
	return err
}

// agentError says of an error of the local API what an operator can do.
func agentError(socket string, err error) error {
	if s, ok := status.FromError(err); err != nil && ok {
		return fmt.Errorf("ask the agent at %q: %s; check that clustermesh-agent runs on this node and that you are root", socket, s.Message())
	}
	return err
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func newServicesCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "services [NAMESPACE/NAME]",
		Short:   "List global services, each backend, and why it is used or not",
		Example: "  clustermesh services\n  clustermesh services default/rebel-base -o wide --watch",
		Args:    cobra.MaximumNArgs(1),
	}
	completeFrom(c, serviceNames)
	return a.askAgent(watchFlags(c), func(ctx context.Context, agent api.AgentClient, args []string) error {
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
		Use:   "maps",
		Short: "List what this node's kernel holds, read back from the eBPF maps",
		Long: `maps lists each frontend with its backends, and how full the maps are that the
programs fill: with clients of session affinity, with sockets, and, where
clustermesh-agent devices runs, with connections. They are counted at most every
minute. Most of them make room by forgetting what was used least recently, so
that they fill up and stay full on a busy node. --usage shows that alone.`,
		Example: "  clustermesh maps\n  clustermesh maps -o json\n  clustermesh maps --usage -o json",
		Args:    cobra.NoArgs,
	}
	alone := c.Flags().Bool("usage", false, "show only how full the maps are that programs fill")
	return a.askAgent(watchFlags(c), func(ctx context.Context, agent api.AgentClient, _ []string) error {
		r, err := agent.Maps(ctx, &api.MapsRequest{})
		if err != nil {
			return err
		}
		list, full := newMaps(r), newUsage(r)
		if *alone {
			return a.show(full, full.table)
		}
		return a.show(list, func(w io.Writer) {
			list.table(w)
			if len(list) > 0 && len(full) > 0 {
				fmt.Fprintln(w)
			}
			full.table(w)
		})
	})
}
