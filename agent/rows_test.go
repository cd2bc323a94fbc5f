package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// The tests below are named after the rows of the threat model that they hold,
// as far as they are about the wire; package mesh has those about content.

// endless is a store whose list has no end.
type endless struct {
	*memoryConn
	prefix string
	n      int
}

func (c *endless) Range(ctx context.Context, start, end string, limit, revision int64) (kvstore.Range, error) {
	if !strings.HasPrefix(start, c.prefix) {
		return c.memoryConn.Range(ctx, start, end, limit, revision)
	}
	r, err := c.memoryConn.Range(ctx, start, end, 1, 0)
	r.KVs = r.KVs[:0]
	for range max(1, min(limit, 1000)) {
		c.n++
		r.KVs = append(r.KVs, kvstore.KV{Key: fmt.Sprintf("%sns/x%09d", c.prefix, c.n), Value: []byte("{"), ModRevision: 1})
	}
	r.More = true
	return r, err
}

// a list without an end, a flood of keys and of garbage: what is kept is
// bounded, the flooder is told why it is not followed, and the changes of others
// come through.
func TestR07_EndlessListsAndFloods(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	s.say("east", "s1", "10.2.0.1:80")
	s.say("west", "s1", "10.3.0.1:80")
	s.await(s.want(all...))
	before := heap()
	prefix := schema.WatchPrefix(schema.KindService, "east", false)
	s.replace("east", func(context.Context, string, clusterfile.File) (connection, error) {
		return &endless{memoryConn: &memoryConn{fakeCluster: s.clusters["east"]}, prefix: prefix}, nil
	})
	s.clusters["east"].BreakWatches(nil)
	s.awaitCluster("east", "held to the limit of keys", func(c *api.Cluster) bool { return strings.Contains(c.GetLastError(), "MaxKeys") })
	s.say("west", "s1", "10.3.0.2:80")
	s.await(s.want(all...))
	s.replace("east", nil)
	s.clusters["east"].BreakWatches(nil)
	s.awaitState("east", "synced", "")
	for i := range 20_000 {
		s.clusters["east"].write(fmt.Sprintf("%sns/garbage-%d", prefix, i%5000), fmt.Appendf(nil, "{%d", i))
		if i%2000 == 0 {
			s.say("west", "s1", fmt.Sprintf("10.3.1.%d:80", i/2000))
			s.await(s.want(all...))
		}
	}
	s.awaitCluster("east", "refused", func(c *api.Cluster) bool {
		return c.GetState() == "synced" && len(c.GetRejections()) > 0
	})
	s.await(s.want(all...))
	if used := int64(heap()) - int64(before); used > 64<<20 {
		t.Errorf("%d bytes are kept", used)
	}
}

func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// the store goes back in time: an older state, a lower revision, another
// replica with another history. Each time its present content counts, complete,
// and what is in both histories never leaves the maps.
func TestR08_RollbackAndOtherHistories(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	s.say("east", "s1", "10.2.0.1:80", "10.2.0.2:80")
	s.await(s.want(all...))
	s.kernel.keepFull.Store(true)
	east := s.clusters["east"]
	for round := range 10 {
		for i := range 20 { // the revision runs ahead
			s.say("east", "s1", "10.2.0.1:80", fmt.Sprintf("10.2.1.%d:80", i))
		}
		s.await(s.want(all...))
		east.said["s1"] = map[string]bool{"10.2.0.1:80": true, "10.2.0.2:80": true} // as it was long ago
		if round%2 == 0 {
			delete(east.said, "s2")
		} else {
			east.said["s2"] = map[string]bool{"10.2.0.3:80": true}
		}
		east.restart(shape{})
		s.await(s.want(all...))
	}
	s.kernel.keepFull.Store(false)
	if len(s.kernel.emptied) > 0 {
		t.Error(s.kernel.emptied)
	}
	s.awaitState("east", "synced", "")
}

// a server that answers the handshake and then does what no server does:
// the attempt fails in time and costs little, the others go on.
func TestR12_HostileServers(t *testing.T) {
	pki := newPKI(t)
	var dialing sync.WaitGroup // all at once, some cost the whole time limit
	used := totalAlloc()
	for name, answer := range hostileAnswers() {
		file := pki.file(pki.serve(t, "east", answer))
		dialing.Go(func() {
			start := time.Now()
			conn, err := pki.dial(t, file)
			if err == nil {
				conn.Close()
				t.Errorf("%s: the server is believed", name)
			}
			if took := time.Since(start); took > 50*time.Second { // dial's own context ends after a minute
				t.Errorf("%s: no end after %s", name, took)
			}
		})
	}
	dialing.Wait()
	if used := totalAlloc() - used; used > 512<<20 { // servers and clients
		t.Errorf("it cost %d bytes", used)
	}
}

func totalAlloc() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.TotalAlloc
}

// a reply that announces 2 GiB is refused by its header.
func TestR07_AReplyOfTwoGigabytes(t *testing.T) {
	pki := newPKI(t)
	endpoint, sent := pki.serveGRPC(t, "east", append([]byte{0, 0x7f, 0xff, 0xff, 0xff}, bytes.Repeat([]byte{0}, 1<<20)...))
	used := totalAlloc()
	conn, err := pki.dial(t, pki.file(endpoint))
	if err == nil {
		conn.Close()
		t.Fatal("the reply is believed")
	}
	if !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("got %v", err)
	}
	if used := totalAlloc() - used; used > 64<<20 || sent() > 64<<20 {
		t.Errorf("it cost %d bytes, %d were sent", used, sent())
	}
}

// an agent beside such servers stays with what it knows and follows the
// others.
func TestR12_AnAgentWithAHostileServer(t *testing.T) {
	s := newSimulation(t)
	pki := newPKI(t)
	s.say("home", "s1")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(s.want(all...))
	for _, name := range []string{"end", "garbage", "half a frame", "go away", "unknown frames", "headers for ever"} { // the others cost dial's time limit each
		file, dial := pki.file(pki.serve(t, "east", hostileAnswers()[name])), dialTLS(s.agent.cfg.Log)
		s.replace("east", func(ctx context.Context, name string, _ clusterfile.File) (connection, error) {
			return dial(ctx, name, file)
		})
		s.clusters["east"].BreakWatches(nil)
		s.awaitState("east", "stale", "")
		s.say("west", "s1", "10.3.0.1:80", "10.3.1.1:80")
		s.await(s.want(all...))
		s.say("west", "s1", "10.3.0.1:80")
		s.await(s.want(all...))
	}
	s.replace("east", nil)
	s.say("east", "s1", "10.2.0.2:80")
	s.await(s.want(all...))
}

// DNS or a load balancer leads to another endpoint: whoever has no
// certificate for the name in the cluster's file, from the cluster's own CA, is
// refused in the handshake.
func TestR13_AnotherEndpoint(t *testing.T) {
	pki, foreign := newPKI(t), newPKI(t)
	good, _ := pki.serveGRPC(t, "east", nil)
	reaches := func(endpoint string) error {
		conn, err := pki.dial(t, pki.file(endpoint))
		if err == nil {
			conn.Close()
		}
		return err
	}
	var stage *kvstore.DialError
	if err := reaches(good); !errors.As(err, &stage) || stage.Stage != kvstore.StageProbe {
		t.Fatalf("the right server is refused in the handshake: %v", err) // it answers nothing, so more is not reached
	}
	west, _ := pki.serveGRPC(t, "west", nil)
	other, _ := foreign.serveGRPC(t, "east", nil)
	for name, endpoint := range map[string]string{"another cluster of the same CA": west, "another CA": other} {
		if err := reaches(endpoint); !errors.As(err, &stage) || stage.Stage != kvstore.StageVerify {
			t.Errorf("%s: %v", name, err)
		}
	}
}
