package join

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// approved is what is remembered of a request that was approved.
type approved struct {
	At       time.Time `json:"at"`
	Request  Request   `json:"request"`
	Approval Approval  `json:"approval"`
	Replace  bool      `json:"replace,omitempty"` // the cluster may have joined before
	View     View      `json:"view"`
	// Until is the end of the invitation, if it was approved for one.
	Until time.Time `json:"until,omitzero"`
}

// confirmGrace is how long after that its confirmation may still arrive: a file
// takes its time, and a connection may be out of order for days.
const confirmGrace = 7 * 24 * time.Hour

// last is when the confirmation of an approval comes too late. The end that a
// request gave itself counts for a while only.
func (k approved) last() time.Time {
	end := k.Request.Expires
	for _, other := range []time.Time{k.Until, k.At.Add(maxLife)} {
		if !other.IsZero() && other.Before(end) {
			end = other
		}
	}
	return end.Add(confirmGrace)
}

// Approve signs the certificate that a request, read by [DecodeRequest], asks
// for, and asks for one in return if the other side has endpoints. If it has
// none there is no confirmation to wait for, and the peer is handed to install
// at once. The very same request gets the same approval until the exchange is
// over. The error is a [*Refusal] if the request is what is wrong.
func (s Site) Approve(r Request, install func(Peer) error) (Approval, error) {
	var out Approval
	err := s.locked(func() (err error) {
		out, err = s.approve(r, time.Now(), install)
		return err
	})
	return out, err
}

func (s Site) approve(r Request, now time.Time, install func(Peer) error) (Approval, error) {
	if err := s.Validate(); err != nil {
		return Approval{}, fmt.Errorf("approve request: %w", err)
	}
	own, err := s.party()
	if err != nil {
		return Approval{}, fmt.Errorf("approve request: %w", err)
	}
	var known approved
	switch err := readJSON(s.state(approvedPrefix+r.ID()+".json"), &known); {
	case err == nil:
		return s.repeat(own, known, now, install)
	case !errors.Is(err, fs.ErrNotExist):
		return Approval{}, err
	}
	if err := s.checkRequest(own, r, now); err != nil {
		return Approval{}, err
	}
	if known, err = s.sign(own, r, now); err != nil {
		return Approval{}, err
	}
	return known.Approval, s.conclude(known, install)
}

// begun is a file that is there while a request is signed: a certificate with
// its name may then be its own, from an attempt that was cut off.
func (s Site) begun(r Request) string { return s.state(approvedPrefix + r.ID() + ".begun") }

func (s Site) sign(own Party, r Request, now time.Time) (approved, error) {
	a := Approval{Header: Header{kindApproval, messageVersion}, Request: r.ID(), From: own}
	base := s.state(approvedPrefix + r.ID())
	if err := disk.Replace(s.begun(r), disk.KeyMode, nil); err != nil {
		return approved{}, err
	}
	s.reached("begun")
	if len(r.From.Endpoints) > 0 {
		csr, key, err := certs.NewSigningRequest(certs.Role{Kind: certs.Remote, Cluster: own.Cluster})
		if err != nil {
			return approved{}, fmt.Errorf("approve request: %w", err)
		}
		a.CSR = string(csr)
		if err := disk.Replace(base+".key", disk.KeyMode, key); err != nil {
			return approved{}, err
		}
	}
	cert, err := certs.SignRequest(s.Dir, []byte(r.CSR), certs.Role{Kind: certs.Remote, Cluster: r.From.Cluster}, s.Validity)
	if err != nil {
		return approved{}, fmt.Errorf("approve request: %w", err)
	}
	s.reached("signed")
	a.Certificate = string(cert)
	known := approved{At: now.UTC(), Request: r, Approval: a, Replace: s.replaces(r.From.Cluster), View: s.View, Until: s.until}
	if err := disk.Create(base+".json", disk.CertMode, Encode(known)); err != nil {
		return approved{}, err
	}
	s.reached("approved")
	return known, disk.Remove(s.begun(r))
}

// conclude ends the exchange with a cluster that is not connected to.
func (s Site) conclude(known approved, install func(Peer) error) error {
	if known.Approval.CSR != "" {
		return nil
	}
	id := known.Approval.Request
	if err := s.install(known.peer("", nil), id, install); err != nil {
		return err
	}
	return s.finish(approvedPrefix, id, finished{Cluster: known.Request.From.Cluster})
}

func (k approved) peer(cert string, key []byte) Peer {
	p := k.Request.From.peer(cert, key, k.Replace)
	p.Reads, p.View = true, k.View
	return p
}

// repeat answers a request that was approved before.
func (s Site) repeat(own Party, known approved, now time.Time, install func(Peer) error) (Approval, error) {
	id := known.Approval.Request
	over := exists(s.state(donePrefix + approvedPrefix + id))
	switch {
	case over && (known.Approval.CSR != "" || !s.joinedBy(known.Request.From.Cluster, id)):
		return Approval{}, refuse(Replayed, "this request has been approved already; make a new one")
	case !known.Approval.From.equal(own):
		return Approval{}, refuse(Replayed, "this request has been approved already, with other endpoints or another CA; make a new one")
	case now.After(known.Request.Expires):
		return Approval{}, tooOld(known.Request)
	case over:
		return known.Approval, nil
	}
	return known.Approval, s.conclude(known, install)
}

func tooOld(r Request) *Refusal {
	return refuse(Expired, "the request could be approved until %s; make a new one", stamp(r.Expires))
}

func (s Site) checkRequest(own Party, r Request, now time.Time) error {
	switch {
	case now.After(r.Expires):
		return tooOld(r)
	case len(r.From.Endpoints)+len(own.Endpoints) == 0:
		return refuse(BadRequest, "neither cluster has an endpoint to connect to; give --endpoint on one side at least")
	}
	if err := s.notOurs(sentPrefix + r.ID()); err != nil {
		return err
	}
	if err := s.admit(own, r.From); err != nil {
		return err
	}
	if err := s.checkBook(r.From.Cluster, r.ID()); err != nil {
		return err
	}
	if s.Check != nil {
		if err := s.Check(r.From.Cluster, s.replaces(r.From.Cluster)); err != nil {
			return err
		}
	}
	if exists(s.begun(r)) {
		return nil
	}
	return s.checkIssued(r.From.Cluster, r.ID())
}

// notOurs refuses what this directory itself has made: both sides of a relation
// in one directory would take each other's peers for their own.
func (s Site) notOurs(name string) error {
	if !exists(s.state(name + ".json")) {
		return nil
	}
	return refuse(BadRequest, "the other side's part was made with the same CA directory, and every cluster has one of its own").locally("%s is not that of cluster %q, give that", s.Dir, s.Cluster)
}

// joinedBy reports whether a cluster is a peer by this exchange.
func (s Site) joinedBy(cluster, exchange string) bool {
	k, ok := s.recorded(cluster, exchange)
	return ok && k.Complete
}

// admittedBy reports whether this exchange has begun to make a cluster a peer.
func (s Site) admittedBy(cluster, exchange string) bool {
	_, ok := s.recorded(cluster, exchange)
	return ok
}

func (s Site) recorded(cluster, exchange string) (k Known, ok bool) {
	err := readJSON(s.state(peerPrefix+cluster+".json"), &k)
	return k, err == nil && k.Exchange == exchange
}
