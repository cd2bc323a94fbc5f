package join

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// finished is what is remembered of an exchange that is over.
type finished struct {
	Cluster      string        `json:"cluster"`
	Approval     string        `json:"approval,omitempty"` // SHA-256 of it
	Confirmation *Confirmation `json:"confirmation,omitempty"`
}

func sumOf(a Approval) string {
	sum := sha256.Sum256(Encode(a))
	return hex.EncodeToString(sum[:])
}

// AcceptApproval takes an approval for a request of this side and hands the peer
// that it makes to install, which keeps it with its key. The result is a
// confirmation for the other side, nil if that did not ask for a certificate.
// After an error, that of install among them, and after the process was killed,
// it can be called again; the same approval then gives the same confirmation as
// long as its cluster is a peer.
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
	if done, err := s.finished(sentPrefix, a.Request); err == nil && done.Approval == sumOf(a) && s.joinedBy(done.Cluster, a.Request) {
		return done.Confirmation, disk.Remove(s.state(sentPrefix + a.Request + ".key"))
	}
	key, err := s.pending(sentPrefix, a.Request, &sent)
	if err != nil {
		return nil, err
	}
	if err := s.checkApproval(a, sent, key); err != nil {
		return nil, err
	}
	p := a.From.peer(a.Certificate, key, s.replaces(a.From.Cluster))
	p.Reads, p.View = a.CSR != "", s.View
	if err := s.install(p, a.Request, install); err != nil {
		return nil, err
	}
	done := finished{Cluster: a.From.Cluster, Approval: sumOf(a)}
	if a.CSR != "" {
		if done.Confirmation, err = s.confirm(a); err != nil {
			return nil, err
		}
		s.reached("confirmed")
	}
	return done.Confirmation, s.finish(sentPrefix, a.Request, done)
}

func (s Site) checkApproval(a Approval, sent Request, key []byte) error {
	if err := s.admit(sent.From, a.From); err != nil {
		return err
	}
	if err := a.asks(len(sent.From.Endpoints) > 0); err != nil {
		return err
	}
	role := certs.Role{Kind: certs.Remote, Cluster: sent.From.Cluster}
	if err := certs.CheckSigned([]byte(a.Certificate), key, []byte(a.From.CA), role); err != nil {
		return err
	}
	if err := s.checkBook(a.From.Cluster, a.Request); err != nil || a.CSR == "" {
		return err
	}
	return s.checkIssued(a.From.Cluster, a.Request)
}

// asks refuses an approval that does not ask for a certificate where one is of
// use, or does where none is: an honest one never does.
func (a Approval) asks(reached bool) error {
	switch {
	case reached && a.CSR == "":
		return refuse(BadRequest, "csr: the approval of cluster %q asks for no certificate, though this side has an endpoint; ask its operator what answered, and begin anew", a.From.Cluster)
	case !reached && a.CSR != "":
		return refuse(BadRequest, "csr: the approval of cluster %q asks for a certificate, though this side has no endpoint; ask its operator what answered, and begin anew", a.From.Cluster)
	}
	return nil
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
// the request named. It may arrive until a week after the end of the invitation
// or the request.
func (s Site) AcceptConfirmation(c Confirmation, install func(Peer) error) error {
	err := s.locked(func() error { return s.acceptConfirmation(c, time.Now(), install) })
	if err != nil {
		return fmt.Errorf("accept confirmation: %w", err)
	}
	return nil
}

func (s Site) acceptConfirmation(c Confirmation, now time.Time, install func(Peer) error) error {
	var known approved
	key, err := s.pending(approvedPrefix, c.Request, &known)
	if err != nil {
		return err
	}
	from := known.Request.From
	if now.After(known.last()) {
		return refuse(Expired, "it could be confirmed until %s; end what is left of it, clustermesh disconnect %s here and clustermesh disconnect %s there, and join again", stamp(known.last()), from.Cluster, known.Approval.From.Cluster)
	}
	if err := s.admit(known.Approval.From, from); err != nil {
		return err
	}
	role := certs.Role{Kind: certs.Remote, Cluster: known.Approval.From.Cluster}
	if err := certs.CheckSigned([]byte(c.Certificate), key, []byte(from.CA), role); err != nil {
		return err
	}
	s.until = known.Until // who is at the other end of an invitation reads what is refused
	if known.Replace = known.Replace || s.replaces(from.Cluster); !known.Replace {
		if err := s.checkBook(from.Cluster, c.Request); err != nil {
			return err
		}
	}
	if !s.View.Empty() {
		known.View = s.View
	}
	if err := s.install(known.peer(c.Certificate, key), c.Request, install); err != nil {
		return err
	}
	return s.finish(approvedPrefix, c.Request, finished{Cluster: from.Cluster})
}

func (p Party) peer(cert string, key []byte, replace bool) Peer {
	return Peer{Cluster: p.Cluster, ID: p.ID, Endpoints: p.Endpoints, CA: []byte(p.CA), Cert: []byte(cert), Key: key, Replace: replace}
}

// pending reads what is remembered of an exchange and its key.
func (s Site) pending(prefix, id string, into any) (key []byte, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	base := s.state(prefix + id)
	if exists(s.state(donePrefix + prefix + id)) {
		return nil, errors.Join(refuse(Replayed, "it has been accepted already"), disk.Remove(base+".key"))
	}
	if err = readJSON(base+".json", into); err == nil {
		key, err = os.ReadFile(base + ".key")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(Unknown, "no exchange %s waits for it here", id).locally("is %s the right directory?", s.Dir)
	}
	return key, err
}

// finish ends an exchange: its key is in the files of the peer from now on.
func (s Site) finish(prefix, id string, f finished) error {
	if err := disk.Replace(s.state(donePrefix+prefix+id), disk.CertMode, Encode(f)); err != nil {
		return err
	}
	s.reached("finished")
	return disk.Remove(s.state(prefix + id + ".key"))
}

func (s Site) finished(prefix, id string) (finished, error) {
	var f finished
	if err := checkID(id); err != nil {
		return f, err
	}
	return f, readJSON(s.state(donePrefix+prefix+id), &f)
}
