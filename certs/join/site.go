package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// RequestLife is how long a request may be approved unless said otherwise.
const RequestLife = 7 * 24 * time.Hour

// Site is one's own side. Its methods read and write the CA directory and the
// directory join in it; they may be called from several processes at once.
type Site struct {
	Dir       string        // the CA directory, see certs.InitCA
	Cluster   string        // own name
	Endpoints []string      // https://host:port of the own apiserver; none if others cannot connect
	Validity  time.Duration // of certificates for others; one year when zero
	// Replace allows a name that has a valid certificate already, such as for a
	// cluster that joins again with a new key.
	Replace bool
}

// Validate returns all problems of s in one error.
func (s Site) Validate() error {
	var errs []error
	if s.Dir == "" {
		errs = append(errs, errors.New("the CA directory is not set"))
	}
	if s.Validity < 0 {
		errs = append(errs, fmt.Errorf("validity %s is negative", s.Validity))
	}
	errs = append(errs, Party{Cluster: s.Cluster, Endpoints: s.Endpoints}.validate(false))
	return errors.Join(errs...)
}

// The files of an exchange in the directory join, by its id.
const (
	sentPrefix     = "sent-"     // a request of ours: .json and .key
	approvedPrefix = "approved-" // a request of others: .json, and .key of our own certificate
	donePrefix     = "done-"     // the exchange is over on this side
)

func (s Site) state(name string) string { return filepath.Join(s.Dir, "join", name) }

// locked runs fn while no other process changes the directory join.
func (s Site) locked(fn func() error) error {
	if err := errors.Join(disk.Ensure(s.Dir), disk.Ensure(s.state(""))); err != nil {
		return err
	}
	unlock, err := disk.Lock(s.state(""))
	if err != nil {
		return err
	}
	defer unlock()
	return fn()
}

func (s Site) role() certs.Role { return certs.Role{Kind: certs.Remote, Cluster: s.Cluster} }

// party is what this side tells of itself.
func (s Site) party() (Party, error) {
	bundle, _, err := certs.Bundle(s.Dir)
	return Party{Cluster: s.Cluster, Endpoints: s.Endpoints, CA: string(bundle)}, err
}

// Request makes a key, which stays in the directory join, and a request to be
// approved by another cluster within life, RequestLife when zero.
func (s Site) Request(life time.Duration) (Request, error) {
	if err := s.Validate(); err != nil {
		return Request{}, fmt.Errorf("make request: %w", err)
	}
	if life == 0 {
		life = RequestLife
	}
	from, err := s.party()
	if err != nil {
		return Request{}, fmt.Errorf("make request: %w", err)
	}
	csr, key, err := certs.NewSigningRequest(s.role())
	if err != nil {
		return Request{}, fmt.Errorf("make request: %w", err)
	}
	r := Request{Header: Header{kindRequest, messageVersion}, From: from, CSR: string(csr), Expires: time.Now().Add(life).UTC().Truncate(time.Second)}
	err = s.locked(func() error {
		return errors.Join(
			disk.Create(s.state(sentPrefix+r.ID()+".key"), disk.KeyMode, key),
			disk.Create(s.state(sentPrefix+r.ID()+".json"), disk.CertMode, Encode(r)))
	})
	return r, err
}

// Forget drops a request that will not be answered, with its key.
func (s Site) Forget(r Request) error {
	return disk.Remove(s.state(sentPrefix+r.ID()+".key"), s.state(sentPrefix+r.ID()+".json"))
}

// approved is what is remembered of a request that was approved.
type approved struct {
	At       time.Time `json:"at"`
	Request  Request   `json:"request"`
	Approval Approval  `json:"approval"`
	Replace  bool      `json:"replace,omitempty"` // the cluster may have joined before
}

// Approve signs the certificate that a request, read by [DecodeRequest], asks
// for, and asks for one in return if the other side has endpoints. Every request
// is approved once. The error is a [*Refusal] if the request is what is wrong.
func (s Site) Approve(r Request) (Approval, error) {
	var out Approval
	err := s.locked(func() (err error) {
		out, err = s.approve(r, time.Now())
		return err
	})
	return out, err
}

func (s Site) approve(r Request, now time.Time) (Approval, error) {
	if err := s.Validate(); err != nil {
		return Approval{}, fmt.Errorf("approve request: %w", err)
	}
	if err := s.checkRequest(r, now); err != nil {
		return Approval{}, err
	}
	from, err := s.party()
	if err != nil {
		return Approval{}, fmt.Errorf("approve request: %w", err)
	}
	a := Approval{Header: Header{kindApproval, messageVersion}, Request: r.ID(), From: from}
	base := s.state(approvedPrefix + r.ID())
	if len(r.From.Endpoints) > 0 {
		csr, key, err := certs.NewSigningRequest(s.role())
		if err != nil {
			return Approval{}, fmt.Errorf("approve request: %w", err)
		}
		a.CSR = string(csr)
		if err := disk.Replace(base+".key", disk.KeyMode, key); err != nil {
			return Approval{}, err
		}
	}
	cert, err := certs.SignRequest(s.Dir, []byte(r.CSR), certs.Role{Kind: certs.Remote, Cluster: r.From.Cluster}, s.Validity)
	if err != nil {
		return Approval{}, fmt.Errorf("approve request: %w", err)
	}
	a.Certificate = string(cert)
	return a, disk.Create(base+".json", disk.CertMode, Encode(approved{At: now.UTC(), Request: r, Approval: a, Replace: s.Replace}))
}

func (s Site) checkRequest(r Request, now time.Time) error {
	switch {
	case now.After(r.Expires):
		return refuse(Expired, "the request could be approved until %s; make a new one", r.Expires.UTC().Format(time.RFC3339))
	case r.From.Cluster == s.Cluster:
		return refuse(BadRequest, "both clusters are named %q; names must differ within a mesh", s.Cluster)
	case len(r.From.Endpoints)+len(s.Endpoints) == 0:
		return refuse(BadRequest, "neither cluster has an endpoint to connect to; give --endpoint on one side at least")
	}
	if _, err := os.Stat(s.state(approvedPrefix + r.ID() + ".json")); err == nil {
		return refuse(Replayed, "this request has been approved already; make a new one")
	}
	return s.checkName(r.From.Cluster)
}

// checkName refuses a name that is somebody's: it would let the newcomer pass
// for him.
func (s Site) checkName(cluster string) error {
	if s.Replace {
		return nil
	}
	list, err := certs.IssuedBy(s.Dir)
	if err != nil {
		return err
	}
	want := certs.Role{Kind: certs.Remote, Cluster: cluster}.CommonName()
	for _, i := range list {
		if i.Name == want && !i.Revoked {
			return refuse(NameTaken, "cluster %q has a certificate that is valid until %s; allow it with --replace, or revoke it first: clustermesh certs revoke %s", cluster, i.NotAfter.UTC().Format(time.RFC3339), want)
		}
	}
	return nil
}

// AcceptApproval takes an approval for a request of this side and hands the peer
// that it makes to install, which keeps it with its key. The result is a
// confirmation for the other side, nil if that did not ask for a certificate.
// After an error, that of install among them, it can be called again.
func (s Site) AcceptApproval(a Approval, install func(Peer) error) (*Confirmation, error) {
	var confirmation *Confirmation
	err := s.locked(func() (err error) {
		confirmation, err = s.acceptApproval(a, install)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("accept approval: %w", err)
	}
	return confirmation, nil
}

func (s Site) acceptApproval(a Approval, install func(Peer) error) (*Confirmation, error) {
	var sent Request
	key, err := s.pending(sentPrefix, a.Request, &sent)
	if err != nil {
		return nil, err
	}
	if a.From.Cluster == sent.From.Cluster {
		return nil, refuse(BadRequest, "both clusters are named %q; names must differ within a mesh", a.From.Cluster)
	}
	role := certs.Role{Kind: certs.Remote, Cluster: sent.From.Cluster}
	if err := certs.CheckSigned([]byte(a.Certificate), key, []byte(a.From.CA), role); err != nil {
		return nil, err
	}
	if err := s.checkName(a.From.Cluster); err != nil && a.CSR != "" {
		return nil, err
	}
	if err := install(a.From.peer(a.Certificate, key, s.Replace)); err != nil {
		return nil, err
	}
	var confirmation *Confirmation
	if a.CSR != "" {
		if confirmation, err = s.confirm(a); err != nil {
			return nil, err
		}
	}
	return confirmation, s.finish(sentPrefix, a.Request)
}

func (s Site) confirm(a Approval) (*Confirmation, error) {
	cert, err := certs.SignRequest(s.Dir, []byte(a.CSR), certs.Role{Kind: certs.Remote, Cluster: a.From.Cluster}, s.Validity)
	if err != nil {
		return nil, err
	}
	return &Confirmation{Header: Header{kindConfirmation, messageVersion}, Request: a.Request, Certificate: string(cert)}, nil
}

// AcceptConfirmation takes the confirmation of an approval of this side and
// hands the peer that it makes to install, as AcceptApproval does. It is believed
// for what it is: a certificate for a key that only this side has, by the CA that
// the request named.
func (s Site) AcceptConfirmation(c Confirmation, install func(Peer) error) error {
	err := s.locked(func() error {
		var known approved
		key, err := s.pending(approvedPrefix, c.Request, &known)
		if err != nil {
			return err
		}
		from := known.Request.From
		role := certs.Role{Kind: certs.Remote, Cluster: known.Approval.From.Cluster}
		if err := certs.CheckSigned([]byte(c.Certificate), key, []byte(from.CA), role); err != nil {
			return err
		}
		if err := install(from.peer(c.Certificate, key, known.Replace || s.Replace)); err != nil {
			return err
		}
		return s.finish(approvedPrefix, c.Request)
	})
	if err != nil {
		return fmt.Errorf("accept confirmation: %w", err)
	}
	return nil
}

func (p Party) peer(cert string, key []byte, replace bool) Peer {
	return Peer{Cluster: p.Cluster, Endpoints: p.Endpoints, CA: []byte(p.CA), Cert: []byte(cert), Key: key, Replace: replace}
}

// pending reads what is remembered of an exchange and its key.
func (s Site) pending(prefix, id string, into any) (key []byte, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.state(donePrefix + prefix + id)); err == nil {
		return nil, refuse(Replayed, "it has been accepted already")
	}
	base := s.state(prefix + id)
	data, err := os.ReadFile(base + ".json")
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err == nil {
		key, err = os.ReadFile(base + ".key")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(Unknown, "%s has no exchange %s that waits for it; is it the right directory?", s.Dir, id)
	}
	return key, err
}

// finish ends an exchange: its key is in the files of the peer from now on.
func (s Site) finish(prefix, id string) error {
	if err := disk.Replace(s.state(donePrefix+prefix+id), disk.CertMode, nil); err != nil {
		return err
	}
	return disk.Remove(s.state(prefix + id + ".key"))
}
