package join

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// Known is what a site remembers of a cluster that it is a peer of.
type Known struct {
	Cluster string `json:"cluster"`
	ID      uint32 `json:"clusterId"`
	// Exchange is the request that made it a peer: files that it left are those
	// of the same peer, whatever they hold.
	Exchange string    `json:"exchange"`
	Since    time.Time `json:"since"`
	Reads    bool      `json:"reads,omitempty"` // it was issued a certificate
	View     View      `json:"view"`
	// Revoked are the SHA-256 sums, in hex, of certificates that it had before
	// and that were taken back.
	Revoked []string `json:"revoked,omitempty"`
	// Complete is set when all files are in place. What is not complete is no
	// peer yet: the command that made it was cut off and can be repeated.
	Complete bool `json:"complete"`
	// Checked is set when nothing of somebody else was in the way: what is there
	// later was left by the exchange itself.
	Checked bool `json:"checked,omitempty"`
	// Former is the peer of this name that there was before, until Complete: an
	// attempt that fails ends nothing.
	Former *Known `json:"former,omitempty"`
}

// standing returns what is a peer now: k, or what it is to replace.
func (k Known) standing() (Known, bool) {
	switch {
	case k.Complete:
		return k, true
	case k.Former != nil:
		return *k.Former, true
	}
	return Known{}, false
}

// Peers lists the clusters that the site is a peer of, by name.
func (s Site) Peers() ([]Known, error) {
	book, err := s.book()
	var list []Known
	for _, k := range book {
		if now, ok := k.standing(); ok {
			list = append(list, now)
		}
	}
	return list, err
}

func (s Site) book() ([]Known, error) {
	entries, err := os.ReadDir(s.state(""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	var out []Known
	for _, e := range entries {
		name, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), ".json"), peerPrefix)
		if !ok {
			continue
		}
		var k Known
		if err := readJSON(s.state(e.Name()), &k); err != nil || k.Cluster != name {
			return nil, fmt.Errorf("list peers: %s does not describe peer %q: %w", s.state(e.Name()), name, cmp.Or(err, errors.New("restore it from a backup, or disconnect the cluster and let it join again")))
		}
		out = append(out, k)
	}
	return out, nil
}

func (s Site) write(k Known) error {
	return disk.Replace(s.state(peerPrefix+k.Cluster+".json"), disk.KeyMode, Encode(k))
}

// admit refuses a party that cannot be a peer here: its name or id would stand
// for two clusters.
func (s Site) admit(own, p Party) error {
	switch {
	case s.For != "" && p.Cluster != s.For:
		return refuse(NotInvited, "it is of cluster %q and not of %q", p.Cluster, s.For)
	case p.Cluster == own.Cluster:
		return refuse(BadRequest, "cluster %q: both clusters have this name, and names must differ within a mesh; give one of them another one", own.Cluster)
	case p.MaxClusters != own.MaxClusters:
		return refuse(BadRequest, "max-connected-clusters: it is %d in %q and %d in %q; use the same in all clusters of a mesh", p.MaxClusters, p.Cluster, own.MaxClusters, own.Cluster)
	case p.ID == own.ID:
		return refuse(IDTaken, "cluster id %d: %q and %q both have it, and ids must differ within a mesh; give one of them another one", p.ID, p.Cluster, own.Cluster)
	}
	peers, err := s.Peers()
	if err != nil {
		return err
	}
	for _, k := range peers {
		if k.Cluster != p.Cluster && k.ID == p.ID {
			return refuse(IDTaken, "cluster id %d of %q: another peer of %q has it; give one of them another one", p.ID, p.Cluster, own.Cluster).locally("it is that of %[1]s, which ends with: clustermesh disconnect %[1]s", k.Cluster)
		}
	}
	return nil
}

// replaces reports whether a cluster may take the place of one of its name.
func (s Site) replaces(cluster string) bool { return s.Replace && s.For == cluster && cluster != "" }

// allowing says how a cluster is allowed to take that place. Whoever uses an
// invitation reads it on the other side, where it is not his to allow.
func (s Site) allowing(cluster string) string {
	if s.until.IsZero() {
		return "allow it with --replace --for " + cluster
	}
	return fmt.Sprintf("in cluster %q, which invited it, make an invitation with --for %s", s.Cluster, cluster)
}

// checkBook refuses the name of a peer that another exchange made: the newcomer
// would pass for him.
func (s Site) checkBook(cluster, exchange string) error {
	if s.replaces(cluster) {
		return nil
	}
	peers, err := s.Peers()
	if err != nil {
		return err
	}
	for _, k := range peers {
		if k.Cluster == cluster && k.Exchange != exchange {
			return refuse(NameTaken, "cluster %q is a peer since %s; %s, or end that first: clustermesh disconnect %s", cluster, stamp(k.Since), s.allowing(cluster), cluster)
		}
	}
	return nil
}

// checkIssued refuses a name that somebody may show a certificate for, unless
// that was given by this exchange.
func (s Site) checkIssued(cluster, exchange string) error {
	if s.replaces(cluster) || s.admittedBy(cluster, exchange) {
		return nil
	}
	list, err := certs.IssuedBy(s.Dir)
	if err != nil {
		return err
	}
	want := certs.Role{Kind: certs.Remote, Cluster: cluster}.CommonName()
	for _, i := range list {
		if i.Name == want && !i.Revoked {
			return refuse(NameTaken, "cluster %q has a certificate that is valid until %s; %s, or revoke it first: clustermesh certs revoke %s", cluster, stamp(i.NotAfter), s.allowing(cluster), want)
		}
	}
	return nil
}

// install makes a party a peer: it is written down as incomplete, its files are
// put in place, and then it is complete. Whatever happens in between, the same
// exchange can be installed again.
func (s Site) install(p Peer, exchange string, fn func(Peer) error) error {
	k := Known{Cluster: p.Cluster, ID: p.ID, Exchange: exchange, Since: time.Now().UTC().Truncate(time.Second), Reads: p.Reads, View: p.View}
	book, err := s.book()
	if err != nil {
		return err
	}
	for _, old := range book {
		now, isPeer := old.standing()
		if isPeer && old.Cluster != p.Cluster && now.Reads {
			p.Others = append(p.Others, now)
		}
		if isPeer && old.Cluster == p.Cluster && now.Exchange != exchange {
			k.Former = &now
		}
		if old.Cluster == p.Cluster && p.View.Empty() {
			p.Again, p.View = true, old.View // to join again is no way to see more
			if isPeer {
				p.View = now.View
			}
			k.View = p.View
		}
		ours := old.Cluster == p.Cluster && old.Exchange == exchange
		p.Replace = p.Replace || ours && (old.Complete || old.Checked)
	}
	if s.Check != nil {
		if err := s.Check(p.Cluster, p.Replace); err != nil {
			return err
		}
		k.Checked = true
	}
	trust, gone, err := s.trust()
	if err != nil {
		return err
	}
	p.Trust, p.Revoked, p.Others = trust, gone[p.Cluster], revokedToo(p.Others, gone)
	k.Revoked = p.Revoked
	if err := s.write(k); err != nil {
		return err
	}
	s.reached("recorded")
	if err := fn(p); err != nil {
		return err
	}
	s.reached("installed")
	k.Complete, k.Former = true, nil
	return s.write(k)
}

// trust returns the CAs that sign what peers show here, and which certificates of
// clusters were taken back, by cluster.
func (s Site) trust() (bundle []byte, gone map[string][]string, err error) {
	bundle, _, err = certs.Bundle(s.Dir)
	if err != nil {
		return nil, nil, err
	}
	list, err := certs.IssuedBy(s.Dir)
	if err != nil {
		return nil, nil, err
	}
	given, err := s.given()
	gone = map[string][]string{}
	for _, i := range list {
		if g, ok := given[i.Serial]; ok && i.Revoked {
			gone[g.cluster] = append(gone[g.cluster], g.sum)
		}
	}
	for cluster, sums := range gone {
		slices.Sort(sums)
		gone[cluster] = slices.Compact(sums)
	}
	return bundle, gone, err
}

// reached is where tests cut a command off.
func (s Site) reached(point string) {
	if s.cut != nil {
		s.cut(point)
	}
}
