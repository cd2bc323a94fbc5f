package join

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

const (
	invitePrefix = "invitation-"
	usedPrefix   = "used-"

	// InviteLife is how long an invitation may be used unless said otherwise.
	InviteLife = time.Hour
	maxLife    = 30 * 24 * time.Hour
)

// InviteOptions are the choices of an invitation.
type InviteOptions struct {
	// For is the only cluster that may use it. It may then have joined before
	// and gets a new certificate. Any newcomer when empty.
	For string
	// Life is how long it may be used, InviteLife when zero.
	Life time.Duration
}

// Invited is what a site remembers of an invitation; the secret is not in it.
type Invited struct {
	ID      string    `json:"id"`
	For     string    `json:"for,omitempty"`
	Expires time.Time `json:"expires"`
	Hash    string    `json:"hash,omitempty"` // SHA-256 of the secret
	// Endpoints, View and ValiditySeconds are what the site was told when it was
	// made: to whom it is given, that was promised, whatever the acceptor is told
	// that serves it. Only endpoints and validity that it does not have are the
	// acceptor's.
	Endpoints       []string `json:"endpoints,omitempty"`
	View            View     `json:"view"`
	ValiditySeconds int64    `json:"validitySeconds,omitempty"`
	Used            *Use     `json:"used,omitempty"`
}

// Use says who used an invitation.
type Use struct {
	By      string    `json:"by"`
	At      time.Time `json:"at"`
	Request string    `json:"request"`
}

// Invite makes an invitation to be used at endpoint, host:port of an [Acceptor]
// of this site, and remembers it. It is bound to the CA that issues now: after a
// rotation of the CA was activated it no longer works.
func (s Site) Invite(endpoint string, o InviteOptions) (Invitation, error) {
	if o.Life == 0 {
		o.Life = InviteLife
	}
	if err := errors.Join(s.Validate(), s.checkInvite(o)); err != nil {
		return Invitation{}, fmt.Errorf("make invitation: %w", err)
	}
	_, active, err := certs.Bundle(s.Dir)
	if err != nil {
		return Invitation{}, fmt.Errorf("make invitation: %w", err)
	}
	i, err := NewInvitation(endpoint, sha256.Sum256(active.Raw), NewSecret(), time.Now().Add(o.Life))
	if err != nil {
		return Invitation{}, err
	}
	record := Invited{ID: i.Secret.ID(), For: o.For, Expires: i.Expires, Hash: hashOf(i.Secret), Endpoints: s.Endpoints, View: s.View, ValiditySeconds: int64((s.Validity + time.Second - 1) / time.Second)}
	return i, s.locked(func() error {
		return disk.Create(s.state(invitePrefix+record.ID+".json"), disk.KeyMode, Encode(record))
	})
}

func (s Site) checkInvite(o InviteOptions) error {
	var errs []error
	if o.For != "" {
		errs = append(errs, certs.CheckCluster(o.For))
	}
	if o.For == s.Cluster {
		errs = append(errs, fmt.Errorf("cluster %q would invite itself", s.Cluster))
	}
	if o.Life < time.Second || o.Life > maxLife {
		errs = append(errs, fmt.Errorf("life %s is not between a second and %s", o.Life, maxLife))
	}
	return errors.Join(errs...)
}

func hashOf(secret Secret) string {
	sum := sha256.Sum256(secret[:])
	return hex.EncodeToString(sum[:])
}

// Invitations lists what was invited, sorted by id. The hashes are left out.
func (s Site) Invitations() ([]Invited, error) {
	entries, err := os.ReadDir(s.state(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list invitations: %w", err)
	}
	var out []Invited
	for _, e := range entries {
		id, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), ".json"), invitePrefix)
		if !ok {
			continue
		}
		i, err := s.invited(id)
		if err != nil {
			return nil, fmt.Errorf("list invitations: %w", err)
		}
		i.Hash = ""
		out = append(out, i)
	}
	return out, nil
}

func (s Site) invited(id string) (Invited, error) {
	var i Invited
	if err := readJSON(s.state(invitePrefix+id+".json"), &i); err != nil {
		return Invited{}, err
	}
	var use Use
	err := readJSON(s.state(usedPrefix+id+".json"), &use)
	if err == nil {
		i.Used = &use
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return i, err
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return err
}

// Cancel takes an invitation back; it is then unknown. One that was used stays
// in the list as used.
func (s Site) Cancel(id string) error {
	if id == "" || filepath.Base(id) != id {
		return fmt.Errorf("cancel invitation: %q is not an id", id)
	}
	return s.locked(func() error {
		i, err := s.invited(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("cancel invitation: there is none with id %q", id)
		case err != nil:
			return fmt.Errorf("cancel invitation: %w", err)
		case i.Used != nil:
			return fmt.Errorf("cancel invitation: %q has been used by cluster %s; use: clustermesh disconnect %s", id, i.Used.By, i.Used.By)
		}
		return disk.Remove(s.state(invitePrefix + id + ".json"))
	})
}

// Redeem approves the request of a cluster that shows the secret of an
// invitation, once. The error is a [*Refusal] if secret or request are what is
// wrong; the invitation then stays as it was. An invitation counts as used
// before anything is signed for it, also if the process is killed right then. The
// very same request gets its approval again until the exchange is over. install
// is called as by [Site.Approve].
func (s Site) Redeem(secret Secret, r Request, install func(Peer) error) (Approval, error) {
	var out Approval
	err := s.locked(func() error {
		now := time.Now()
		i, err := s.open(secret, r, now)
		if err != nil {
			return err
		}
		out, err = s.of(i).redeem(i, r, now, install)
		return err
	})
	return out, err
}

// of is the site as it was when the invitation was made.
func (s Site) of(i Invited) Site {
	s.For, s.Replace = i.For, i.For != ""
	s.View, s.until = i.View, i.Expires
	if len(i.Endpoints) > 0 {
		s.Endpoints = i.Endpoints
	}
	if i.ValiditySeconds > 0 {
		s.Validity = time.Duration(i.ValiditySeconds) * time.Second
	}
	return s
}

func (s Site) redeem(i Invited, r Request, now time.Time, install func(Peer) error) (Approval, error) {
	if i.Used != nil {
		return s.approve(r, now, install) // cut off before, or its answer was lost
	}
	if err := s.checkFresh(r, now); err != nil {
		return Approval{}, err
	}
	use := s.state(usedPrefix + i.ID + ".json")
	if err := disk.Create(use, disk.KeyMode, Encode(Use{By: r.From.Cluster, At: now.UTC(), Request: r.ID()})); err != nil {
		return Approval{}, fmt.Errorf("use invitation: %w", err)
	}
	s.reached("used")
	out, err := s.approve(r, now, install)
	if err != nil && !exists(s.state(approvedPrefix+r.ID()+".json")) {
		err = errors.Join(err, disk.Remove(use)) // nothing was given out
	}
	return out, err
}

// checkFresh refuses what was approved already, on another invitation or none.
func (s Site) checkFresh(r Request, now time.Time) error {
	if exists(s.state(approvedPrefix + r.ID() + ".json")) {
		return refuse(Replayed, "this request has been approved already; make a new one")
	}
	own, err := s.party()
	if err != nil {
		return err
	}
	return s.checkRequest(own, r, now)
}

// invitationOf returns the invitation of a secret, whatever its state.
func (s Site) invitationOf(secret Secret) (Invited, error) {
	i, err := s.invited(secret.ID())
	if errors.Is(err, fs.ErrNotExist) || err == nil && subtle.ConstantTimeCompare([]byte(i.Hash), []byte(hashOf(secret))) != 1 {
		return i, refuse(Unknown, "there is no such invitation here; it was changed on the way, cancelled, or is of another cluster")
	}
	return i, err
}

// open returns the invitation of a secret if the request may use it.
func (s Site) open(secret Secret, r Request, now time.Time) (Invited, error) {
	i, err := s.invitationOf(secret)
	switch {
	case err != nil:
		return i, err
	case i.Used != nil && i.Used.Request != r.ID():
		return i, refuse(Used, "cluster %s used the invitation at %s; make a new invitation", i.Used.By, stamp(i.Used.At))
	case now.After(i.Expires):
		return i, refuse(Expired, "the invitation ended at %s; make a new one", stamp(i.Expires))
	case i.For != "" && i.For != r.From.Cluster:
		return i, refuse(NotInvited, "the invitation is for cluster %q and not for %q", i.For, r.From.Cluster)
	}
	return i, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
