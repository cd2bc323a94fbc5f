package agent

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/clustermesh/clustermesh/agent/api"
)

// TestMonitorNamesChoices watches choices over the socket: with names where they
// are known, of all services or of one.
func TestMonitorNamesChoices(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	s.say("home", "s2")
	s.say("east", "s1", "10.2.0.1:80")
	s.settle()
	conn, err := grpc.NewClient("unix:"+s.agent.cfg.APISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for request, want := range map[*api.MonitorRequest]int{{}: 3, {Namespace: "ns", Name: "s1", SampleEvery: 9}: 1} {
		stream, err := api.NewAgentClient(conn).Monitor(t.Context(), request, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		named := 0
		for range want {
			c, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if c.GetName() != "" {
				named++
			}
			if !c.GetRefused() && (c.GetCluster() != "east" || c.GetAddress() != "10.2.0.1" || c.GetPort() != 80) {
				t.Errorf("choice %v", c)
			}
			if request.GetName() != "" && c.GetName() != "s1" {
				t.Errorf("%v is of another service", c)
			}
		}
		if named != min(want, 2) {
			t.Errorf("%d of %d choices have names", named, want)
		}
	}
}
