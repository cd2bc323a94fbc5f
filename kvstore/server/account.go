package server

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/purse"
)

// Labels of those who are not configured peers.
const (
	labelLocal = "local" // the cluster's own agents
	labelOther = "other" // everybody else, and everybody before the handshake is over
)

// account is what one peer takes at the moment, all its connections together.
type account struct {
	label    string
	removed  atomic.Bool // from the configuration: its label may no longer be used
	limits   PeerLimits
	conns    atomic.Int64
	streams  atomic.Int64
	watches  atomic.Int64
	unread   *meter
	connects *rate.Limiter
	creates  *rate.Limiter
	requests *rate.Limiter
	ranges   chan struct{} // one per listing being read; nil is no limit
	purses   purse.Purses  // processor time for what is asked for; nil: bounded by its origin
	news     *purse.Purse  // for what it is told of changes; nil as before
	listing  atomic.Int64  // nanoseconds that the last listing took
}

func newAccount(label string, l PeerLimits) *account {
	return &account{
		label: label, limits: l, unread: newMeter(),
		connects: rate.NewLimiter(rate.Limit(l.ConnectsPerSecond), l.Connections),
		creates:  rate.NewLimiter(rate.Limit(l.CreatesPerSecond), l.Watches),
		requests: rate.NewLimiter(rate.Limit(l.RequestsPerSecond), burst(2*l.RequestsPerSecond)),
		ranges:   make(chan struct{}, l.Ranges),
		purses:   requestPurses(l), news: purse.New(l.NewsShare, l.NewsBurst),
	}
}

// newOpenAccount is for those who are bounded per connection only.
func newOpenAccount(label string) *account {
	everything := rate.NewLimiter(rate.Inf, 0)
	return &account{
		label: label, limits: PeerLimits{Connections: math.MaxInt, Streams: math.MaxInt, Watches: math.MaxInt, UnreadBytes: math.MaxInt64},
		unread: newMeter(), connects: everything, creates: everything, requests: everything,
	}
}

// burst makes a limiter's bucket from a rate: at least one.
func burst(perSecond float64) int { return int(math.Max(1, math.Min(perSecond, 1<<30))) }

// take adds one to a count unless that reaches its limit.
func take(count *atomic.Int64, limit int) bool {
	if count.Add(1) > int64(limit) {
		count.Add(-1)
		return false
	}
	return true
}

// name returns the account's label while it may be used.
func (a *account) name() string {
	if a.removed.Load() {
		return labelOther
	}
	return a.label
}

// meter counts bytes and tells when they become fewer.
type meter struct {
	n     atomic.Int64
	fewer chan struct{} // holds a token when n became smaller
}

func newMeter() *meter { return &meter{fewer: make(chan struct{}, 1)} }

func (m *meter) add(n int) {
	m.n.Add(int64(n))
	if n < 0 {
		m.wake()
	}
}

func (m *meter) wake() {
	select {
	case m.fewer <- struct{}{}:
	default:
	}
}

// roster is a table of peers with what each of them may read.
type roster struct {
	table  *peers.Table
	grants map[*peers.Peer]grant
}

// registry knows the peers and what they take. It is safe for concurrent use.
type registry struct {
	cluster string
	limits  PeerLimits
	metrics *metrics
	set     *peers.Set // nil: common names decide, nobody has an account
	local   *account
	other   *account

	mu       sync.Mutex
	roster   *roster
	accounts map[string]*account
}

func newRegistry(cfg Config, m *metrics) *registry {
	return &registry{
		cluster: cfg.Cluster, limits: cfg.Limits.Peer, metrics: m, set: cfg.Peers,
		local: newOpenAccount(labelLocal), other: newOpenAccount(labelOther), accounts: map[string]*account{},
	}
}

// current returns the roster in force and a channel that is closed when it no
// longer is; both are nil without configured peers.
func (r *registry) current() (*roster, <-chan struct{}) {
	if r.set == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	table, changed := r.set.Current()
	if r.roster == nil || r.roster.table != table {
		r.replace(table)
	}
	return r.roster, changed
}

func (r *registry) replace(table *peers.Table) {
	next := &roster{table: table, grants: map[*peers.Peer]grant{}}
	accounts := map[string]*account{}
	for _, p := range table.Peers() {
		a := r.accounts[p.Name]
		if a == nil {
			a = newAccount(p.Name, r.limits)
		}
		accounts[p.Name] = a
		next.grants[p] = r.grantOf(p, a)
	}
	for name, a := range r.accounts {
		if accounts[name] == nil {
			a.removed.Store(true)
			r.metrics.forget(name)
		}
	}
	r.roster, r.accounts = next, accounts
}

// grantOf returns what a peer may read. A view that did not change is not built
// again.
func (r *registry) grantOf(p *peers.Peer, a *account) grant {
	if r.roster != nil {
		if g, ok := r.roster.grants[p]; ok {
			return g
		}
	}
	g := grant{name: p.Name, spans: remoteSpans(r.cluster), account: a, peer: p}
	if !p.View.All {
		g.restricted, g.windows = true, windowsOf(r.cluster, p.View)
	}
	return g
}

// claimed returns the account of the peer that a refused certificate would be
// of, if one of that peer's CAs signed it.
func (r *registry) claimed(err error) *account {
	var refused *peers.RefusedError
	if errors.As(err, &refused) && refused.Peer != "" {
		r.mu.Lock()
		defer r.mu.Unlock()
		if a := r.accounts[refused.Peer]; a != nil {
			return a
		}
	}
	return r.other
}

// named returns the grant of a certificate's common name.
func (r *registry) named(name string) (grant, error) {
	g, err := grantFor(r.cluster, name)
	g.account = r.other
	if name == "local-"+r.cluster {
		g.account = r.local
	}
	return g, err
}
