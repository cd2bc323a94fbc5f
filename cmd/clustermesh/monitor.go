package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/agent/api"
)

func newMonitor(a *app) *cobra.Command {
	request := &api.MonitorRequest{}
	var length time.Duration
	c := &cobra.Command{
		Use:   "monitor [NAMESPACE/NAME]",
		Short: "Watch the backends that this node's kernel chooses",
		Long: `monitor prints a line for each connection and unconnected datagram that the
programs of this node send to a backend or refuse, as it happens, until it is
interrupted. On a busy node --sample keeps that cheap.`,
		Example: "  clustermesh monitor\n  clustermesh monitor default/rebel-base --sample 100 --for 10s -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	c.Flags().Uint32Var(&request.SampleEvery, "sample", 1, "report one of so many choices, picked at random")
	c.Flags().DurationVar(&length, "for", 0, "end after this time; 0 for never")
	completeFrom(c, serviceNames)
	a.askAgentUntil(c, 0, func(ctx context.Context, agent api.AgentClient, args []string) error {
		if len(args) == 1 {
			namespace, name, ok := strings.Cut(args[0], "/")
			if !ok || namespace == "" || name == "" {
				return usage(fmt.Errorf("service %q: not of the form namespace/name", args[0]))
			}
			request.Namespace, request.Name = namespace, name
		}
		a.stream = true // one document for each choice
		if length > 0 {
			bounded, cancel := context.WithTimeout(ctx, length)
			defer cancel()
			ctx = bounded
		}
		stream, err := agent.Monitor(ctx, request)
		if err != nil {
			return err
		}
		return a.follow(ctx, stream)
	})
	return c
}

// follow prints choices until the user or the agent ends it.
func (a *app) follow(ctx context.Context, stream api.Agent_MonitorClient) error {
	for {
		c, err := stream.Recv()
		// The agent may notice the end of the time before we do.
		if code := status.Code(err); errors.Is(err, io.EOF) || code == codes.DeadlineExceeded || code == codes.Canceled && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		v := newChoice(c)
		if a.forMachines() {
			err = a.encode(v)
		} else {
			err = a.line(v.line())
		}
		if err != nil {
			return err
		}
	}
}

// choiceView is one line of monitor.
type choiceView struct {
	Time     time.Time `json:"time"`
	Service  string    `json:"service"` // namespace/name, empty if it is gone
	Frontend string    `json:"frontend"`
	Protocol string    `json:"protocol"`
	Refused  bool      `json:"refused"`
	Backend  string    `json:"backend,omitempty"`
	Cluster  string    `json:"cluster,omitempty"`
	Netns    uint64    `json:"netns,omitempty"`
}

func newChoice(c *api.Choice) choiceView {
	f := c.GetFrontend()
	v := choiceView{
		Time: time.Unix(0, c.GetTimeUnixNanos()).UTC(), Frontend: hostPort(f.GetAddress(), f.GetPort()), Protocol: f.GetProtocol(),
		Refused: c.GetRefused(), Cluster: c.GetCluster(), Netns: c.GetNetns(),
	}
	if c.GetName() != "" {
		v.Service = c.GetNamespace() + "/" + c.GetName()
	}
	if !v.Refused {
		v.Backend = hostPort(c.GetAddress(), c.GetPort())
	}
	return v
}

func hostPort(address string, port uint32) string {
	return net.JoinHostPort(address, strconv.FormatUint(uint64(port), 10))
}

func (v choiceView) line() string {
	service := v.Service
	if service == "" {
		service = "-"
	}
	at := fmt.Sprintf("%s %s %s/%s", v.Time.Format("15:04:05.000000"), service, v.Frontend, v.Protocol)
	if v.Refused {
		return at + " refused: no backend can be used"
	}
	return fmt.Sprintf("%s -> %s %s", at, v.Backend, v.Cluster)
}
