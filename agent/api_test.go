package agent

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/agent/api"
)

// TestExplainAndReleaseOverTheSocket asks as the command does.
func TestExplainAndReleaseOverTheSocket(t *testing.T) {
	s := newSimulationWith(t, func(c *Config) { c.WithdrawalBrakePercent, c.WithdrawalBrakeWindow = 50, time.Hour })
	s.say("home", "s1")
	s.say("east", "s1", "10.2.0.1:80")
	s.settle()
	s.say("east", "s1")
	s.awaitProblem("clustermesh release east")
	conn, err := grpc.NewClient("unix:"+s.agent.cfg.APISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	agent := api.NewAgentClient(conn)
	r, err := agent.Explain(t.Context(), &api.ExplainRequest{Namespace: "ns", Name: "s1"}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	share := r.GetServices()[0].GetClusters()[1]
	if b := r.GetServices()[0].GetFrontends()[0].GetBackends()[0]; b.GetState() != "held" || share.GetCluster() != "east" || share.GetHeld() != 1 || share.GetBackends() != 0 {
		t.Errorf("backend %v, share %v", b, share)
	}
	if _, err := agent.Explain(t.Context(), &api.ExplainRequest{Address: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
	for _, want := range []uint32{1, 0} {
		if r, err := agent.Release(t.Context(), &api.ReleaseRequest{Cluster: "east"}); err != nil || r.GetReleased() != want {
			t.Errorf("released %v, %v", r, err)
		}
	}
	s.await(frontend())
}
