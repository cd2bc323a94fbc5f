package server

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/kvstore/report"
)

// kindReport labels the requests that carry a report.
const kindReport = "report"

// reports describes the service that only own agents have.
func (g *gateway) reports() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: report.Reports_ServiceDesc.ServiceName,
		Methods: []grpc.MethodDesc{{MethodName: "Report", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			end, err := g.begin(ctx)
			if err != nil {
				return nil, err
			}
			defer end()
			return g.serveReport(ctx, decode)
		}}},
	}
}

// serveReport hands a report on. Who is no own agent is answered before a byte
// of the message is looked at, as for any method that does not exist.
func (g *gateway) serveReport(ctx context.Context, decode func(any) error) (any, error) {
	c, err := connOf(ctx)
	if err != nil {
		return nil, err
	}
	if !c.grant.own {
		return nil, g.refuseCall(c, report.Reports_Report_FullMethodName)
	}
	g.metrics.requests.WithLabelValues(kindReport).Inc()
	r := &report.NodeReport{}
	if err := g.receive(ctx, func() error { return decode(bounded{r}) }); err != nil {
		return nil, err
	}
	if err := g.hear(ctx, c, r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &report.Received{}, nil
}

// hear hands a report on with whether somebody else speaks for the node too.
func (g *gateway) hear(ctx context.Context, c *conn, r *report.NodeReport) error {
	if err := errors.Join(ctx.Err(), report.ValidateNode(r.GetNode())); err != nil {
		return err // who has given a connection up speaks on another one
	}
	rival, err := g.conns.speakers.speak(c, r.GetNode())
	if err != nil {
		c.refuse(refusedUnsupported)
		return err
	}
	if rival != "" && g.logs.Allow() {
		g.cfg.Log.Warn("two connections report for one node: two agents run there, or a certificate was stolen",
			"node", r.GetNode(), "peer", c.RemoteAddr().String(), "other", rival)
	}
	return g.cfg.Reports.Report(r, rival != "")
}

// bounded is a message that is decoded only if it is not too large.
type bounded struct{ proto.Message }
