package agent

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// share is the part of web's new connections that goes to a cluster.
func (l *lone) share(cluster string) (share float64) {
	l.t.Helper()
	l.do(func(c *core) {
		for _, b := range c.services(&api.ServicesRequest{}).GetServices()[0].GetBackends() {
			if b.GetCluster() == cluster {
				share += b.GetShare()
			}
		}
	})
	return share
}

// TestARampFollowsTheClock: traffic moves by a twentieth every twentieth of the
// ramp's time, whatever else happens to the service meanwhile, both ways, and the
// service is let alone when it is there.
func TestARampFollowsTheClock(t *testing.T) {
	runLone(t, func(l *lone) {
		p := policy("tiers", "local; east", "spillover", "min=4, ramp=20s")
		healthy := func(n int) {
			l.own(4, func(s *schema.LocalService) {
				p(s)
				for i := n; i < 4; i++ {
					s.Backends[i].Ready, s.Backends[i].Serving = false, false
				}
			})
		}
		healthy(4)
		l.remote("east", 1)
		at := func(when string, want float64) {
			t.Helper()
			if got := l.share("east"); math.Abs(got-want) > 0.01 {
				t.Errorf("%s: east has %.2f %%, want %.2f %%", when, got, want)
			}
		}
		at("at first", 0)
		healthy(2)
		at("when half is gone", 0)
		for second := range 12 {
			l.pass(time.Second - time.Millisecond)
			l.do(func(c *core) { c.set(lb.ServiceName{Namespace: "ns", Name: "web"}) })
			at(fmt.Sprintf("shortly before second %d", second+1), min(5*float64(second), 50))
			l.pass(time.Millisecond)
			at(fmt.Sprintf("in second %d", second+1), min(5*float64(second+1), 50))
		}
		if l.core.spilled[lb.ServiceName{Namespace: "ns", Name: "web"}].ramping || l.core.ramp != nil {
			t.Error("it is looked at although nothing moves any more")
		}
		l.pass(time.Hour) // which must not count as steps
		healthy(4)
		at("when all are back", 50)
		l.pass(3 * time.Second)
		at("three seconds later", 35)
		healthy(0)
		at("when none is left", 100)
		healthy(4)
		at("when all are back at once", 95)
		l.pass(19 * time.Second)
		at("in the end", 0)
		l.wants("in the end", 1, 1, 1, 1)
		l.own(4, nil)
		if n := len(l.core.spilled); n != 0 {
			t.Errorf("%d decisions are remembered that need not be", n)
		}
	})
}
