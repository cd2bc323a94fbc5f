package join

import (
	"bytes"
	"errors"
	"fmt"
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
	Dir     string // the CA directory, see certs.InitCA
	Cluster string // own name
	ID      uint32 // own number in the mesh
	// MaxClusters is the highest number of a cluster, 255 or 511 and the same in
	// all clusters of a mesh; 255 when zero.
	MaxClusters uint32
	Endpoints   []string      // https://host:port of the own apiserver; none if others cannot connect
	Validity    time.Duration // of certificates for others; one year when zero
	// For is the only cluster that may become a peer; any when empty.
	For string
	// Replace allows the cluster For to have a valid certificate already, such as
	// when it joins again with a new key. Without For it allows nothing: whoever
	// is at the other end says himself what he is called.
	Replace bool
	// Check refuses a cluster that install would refuse, before anything is given
	// to it or written down; replace says that it may have joined before. Without
	// it, what lies there is nobody's to replace at a second attempt. May be nil.
	Check func(cluster string, replace bool) error
	// View is what a cluster that joins may read here; all when empty.
	View View

	until time.Time // the end of the invitation that is used, if one is

	cut func(point string) // in tests: called wherever the process might be killed
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
	errs = append(errs, s.self().validate(false), s.View.Validate())
	return errors.Join(errs...)
}

// The files of an exchange in the directory join, by its id.
const (
	sentPrefix     = "sent-"     // a request of ours: .json and .key
	approvedPrefix = "approved-" // a request of others: .json, and .key of our own certificate
	donePrefix     = "done-"     // the exchange is over on this side
	tokenPrefixOf  = "token-"    // by the id of an invitation: our use of it
	peerPrefix     = "peer-"     // by name: a cluster that this one is a peer of
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

// self is what this side tells of itself, without its CA.
func (s Site) self() Party {
	p := Party{Cluster: s.Cluster, ID: s.ID, MaxClusters: s.MaxClusters, Endpoints: s.Endpoints}
	if p.MaxClusters == 0 {
		p.MaxClusters = 255
	}
	return p
}

// party is what this side tells of itself.
func (s Site) party() (Party, error) {
	bundle, _, err := certs.Bundle(s.Dir)
	p := s.self()
	p.CA = string(bundle)
	return p, err
}

func (p Party) equal(o Party) bool { return bytes.Equal(Encode(p), Encode(o)) }

// Request makes a key, which stays in the directory join, and a request to be
// approved by another cluster within life, RequestLife when zero.
func (s Site) Request(life time.Duration) (Request, error) {
	var r Request
	err := s.locked(func() (err error) {
		var key []byte
		if r, key, err = s.request(life); err != nil {
			return err
		}
		return errors.Join(s.sweep(time.Now()), s.keep(r, key))
	})
	return r, err
}

// keptFor is how long an approval may be under way after its request has ended.
const keptFor = 30 * 24 * time.Hour

// sweep forgets requests, and their keys, that nobody answered.
func (s Site) sweep(now time.Time) error {
	sent, err := each[Request](s, sentPrefix, ".json")
	for _, r := range sent {
		if now.After(r.Expires.Add(keptFor)) {
			err = errors.Join(err, s.Forget(r))
		}
	}
	return err
}

// keep stores a request with its key.
func (s Site) keep(r Request, key []byte) error {
	return errors.Join(
		disk.Create(s.state(sentPrefix+r.ID()+".key"), disk.KeyMode, key),
		disk.Create(s.state(sentPrefix+r.ID()+".json"), disk.CertMode, Encode(r)))
}

// request makes a key and a request.
func (s Site) request(life time.Duration) (Request, []byte, error) {
	if err := s.Validate(); err != nil {
		return Request{}, nil, fmt.Errorf("make request: %w", err)
	}
	if life == 0 {
		life = RequestLife
	}
	from, err := s.party()
	if err != nil {
		return Request{}, nil, fmt.Errorf("make request: %w", err)
	}
	csr, key, err := certs.NewSigningRequest(s.role())
	if err != nil {
		return Request{}, nil, fmt.Errorf("make request: %w", err)
	}
	r := Request{Header: Header{kindRequest, messageVersion}, From: from, CSR: string(csr), Expires: time.Now().Add(life).UTC().Truncate(time.Second)}
	return r, key, nil
}

// Forget drops a request that will not be answered, with its key.
func (s Site) Forget(r Request) error {
	base := s.state(sentPrefix + r.ID())
	return disk.Remove(base+".key", base+".json", base+".approval.json")
}
