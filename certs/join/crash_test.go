package join

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// side is a site with the directories that its agents and its apiserver follow.
type side struct {
	Site
	home Home
}

func newSide(t testing.TB, cluster string, cut func(string)) *side {
	s := newSite(t, cluster)
	dir := filepath.Dir(s.Dir)
	s.cut = cut
	home := Home{Clusters: filepath.Join(dir, "clusters"), Peers: filepath.Join(dir, "peers"), cut: cut}
	s.Check = home.Check
	return &side{Site: s, home: home}
}

// requireWhole checks that nothing half stands in the directories: a cluster file
// names files that fit each other, a peer's file is one that an apiserver takes.
func (s *side) requireWhole(t *testing.T, when string, other *side) (connects, admits bool) {
	t.Helper()
	path := filepath.Join(s.home.Clusters, other.Cluster)
	if _, err := os.Stat(path); err == nil {
		connects = true
		f, _, err := clusterfile.Read(path)
		must(t, err)
		parts := map[string][]byte{}
		for _, name := range []string{f.TrustedCAFile, f.CertFile, f.KeyFile} {
			parts[name], err = os.ReadFile(name)
			must(t, err)
		}
		if err := certs.CheckSigned(parts[f.CertFile], parts[f.KeyFile], parts[f.TrustedCAFile], s.role()); err != nil {
			t.Errorf("%s: %s has a cluster file that names files which do not fit: %v", when, s.Cluster, err)
		}
	}
	if _, err := os.Stat(s.home.Peers); err != nil {
		return connects, false
	}
	d := peers.NewDirectory(s.home.Peers, trustOf(t, s.Dir), nil)
	must(t, d.Load())
	if p := d.Problems(); len(p) > 0 {
		t.Errorf("%s: the apiserver of %s does not take its peers: %q", when, s.Cluster, p)
	}
	table, _ := d.Set().Current()
	for _, p := range table.Peers() {
		admits = admits || p.Name == other.Cluster
	}
	return connects, admits
}

func requireJoined(t *testing.T, when string, a, b *side) {
	t.Helper()
	for _, pair := range [][2]*side{{a, b}, {b, a}} {
		connects, admits := pair[0].requireWhole(t, when, pair[1])
		if !connects || !admits {
			t.Errorf("%s: %s connects to %s: %v, admits it: %v", when, pair[0].Cluster, pair[1].Cluster, connects, admits)
		}
		list, err := pair[0].Peers()
		must(t, err)
		if len(list) != 1 || list[0].Cluster != pair[1].Cluster {
			t.Errorf("%s: %s remembers %+v", when, pair[0].Cluster, list)
		}
	}
	keys, err := filepath.Glob(filepath.Join(filepath.Dir(a.Dir), "*", "join", "*.key"))
	must(t, err)
	if len(keys) > 0 {
		t.Errorf("%s: keys lie about: %q", when, keys)
	}
}

// knife ends the process, as far as a test can, at one of the points that it
// passes: a panic runs no cleanup of ours but the locks', which end with a
// process too.
type knife struct {
	left  atomic.Int64
	where atomic.Value
}

func (k *knife) cut(point string) {
	if k.left.Add(-1) == 0 {
		k.where.Store(point)
		panic(http.ErrAbortHandler) // the one panic that net/http does not print
	}
}

var errKilled = errors.New("killed")

// alive runs fn and turns the knife's panic into an error.
func alive(fn func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = errKilled
		}
	}()
	return fn()
}

// TestJoinSurvivesBeingKilledAnywhere kills one of the two sides at each point in
// turn and then gives the same command again.
func TestJoinSurvivesBeingKilledAnywhere(t *testing.T) {
	t.Parallel()
	for n := int64(1); ; n++ {
		k := new(knife)
		west, east := newSide(t, "west", k.cut), newSide(t, "east", k.cut)
		address, stop := start(t, &Acceptor{Site: east.Site, Install: east.home.Install})
		token := invite(t, east.Site, address, InviteOptions{}).Token()
		k.left.Store(n)
		run := func() error {
			_, err := Join(t.Context(), token, west.Site, west.home.Install)
			return err
		}
		err := alive(run)
		if k.where.Load() == nil {
			must(t, err)
			t.Logf("%d points", n-1)
			return
		}
		when := fmt.Sprintf("cut off at point %d, %q", n, k.where.Load())
		west.requireWhole(t, when, east)
		east.requireWhole(t, when, west)
		if err := run(); err != nil && !refusedAsUsedUp(err) {
			t.Errorf("%s: the second attempt failed: %v", when, err)
		}
		requireJoined(t, when, west, east)
		go stop() // takes a moment in which the next one can begin
	}
}

// refusedAsUsedUp: the token had done all that it is for when the command was cut
// off.
func refusedAsUsedUp(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Reason == Used
}

// TestFilesSurviveBeingKilledAnywhere does the same to the commands that exchange
// files.
func TestFilesSurviveBeingKilledAnywhere(t *testing.T) {
	t.Parallel()
	for n := int64(1); ; n++ {
		k := new(knife)
		west, east := newSide(t, "west", k.cut), newSide(t, "east", k.cut)
		request, err := west.Request(0)
		must(t, err)
		k.left.Store(n)
		twice := func(fn func() error) {
			t.Helper()
			err := alive(fn)
			if errors.Is(err, errKilled) {
				west.requireWhole(t, fmt.Sprint(k.where.Load()), east)
				east.requireWhole(t, fmt.Sprint(k.where.Load()), west)
				err = fn()
			}
			var r *Refusal
			if err != nil && !(errors.As(err, &r) && r.Reason == Replayed) {
				t.Errorf("killed at %v and repeated: %v", k.where.Load(), err)
			}
		}
		var approval Approval
		var confirmation *Confirmation
		twice(func() (err error) { approval, err = east.Approve(request, east.home.Install); return err })
		twice(func() (err error) {
			confirmation, err = west.AcceptApproval(approval, west.home.Install)
			return err
		})
		twice(func() error { return east.AcceptConfirmation(*confirmation, east.home.Install) })
		requireJoined(t, fmt.Sprint(k.where.Load()), west, east)
		if k.where.Load() == nil {
			t.Logf("%d points", n-1)
			return
		}
	}
}

// TestLeaveSurvivesBeingKilledAnywhere: afterwards nothing is left, and the
// cluster may join again.
func TestLeaveSurvivesBeingKilledAnywhere(t *testing.T) {
	t.Parallel()
	for n := int64(1); ; n++ {
		k := new(knife)
		west, east := newSide(t, "west", nil), newSide(t, "east", k.cut)
		joinFiles(t, west, east)
		k.left.Store(n)
		leave := func() error { _, err := Leave(east.Dir, east.home, "west"); return err }
		if err := alive(leave); err != nil {
			must(t, leave())
		}
		if connects, admits := east.requireWhole(t, "left", west); connects || admits {
			t.Errorf("killed at %v: connects %v, admits %v", k.where.Load(), connects, admits)
		}
		for _, dir := range []string{east.home.Clusters, east.home.Peers} {
			left, err := os.ReadDir(dir)
			must(t, err)
			if len(left) > 0 {
				t.Errorf("killed at %v: %s holds %v", k.where.Load(), dir, left)
			}
		}
		list, err := east.Peers()
		must(t, err)
		if issued, err := certs.IssuedBy(east.Dir); err != nil || !issued[0].Revoked || len(list) != 0 {
			t.Errorf("killed at %v: issued %v, remembered %v, error %v", k.where.Load(), issued, list, err)
		}
		if k.where.Load() == nil {
			return
		}
	}
}

// joinFiles makes two sides peers without a network.
func joinFiles(t *testing.T, west, east *side) {
	t.Helper()
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, east.home.Install)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, west.home.Install)
	must(t, err)
	must(t, east.AcceptConfirmation(*confirmation, east.home.Install))
}

// again lets two sides take each other's place of before.
func again(west, east *side) {
	west.For, west.Replace = east.Cluster, true
	east.For, east.Replace = west.Cluster, true
}
