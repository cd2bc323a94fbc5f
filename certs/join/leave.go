package join

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// Leave ends the relation with a cluster from this side alone; the other need
// not be there. It removes the cluster's files, what lets it read first, revokes
// every certificate that the CA in dir issued to it, and ends exchanges with it
// that are under way. The files are removed once more at the end, when no
// confirmation can put them back. found says whether there was anything to end; it
// may be repeated. dir may be empty, and is then left out.
func Leave(dir string, home Home, cluster string) (found bool, err error) {
	if err := certs.CheckCluster(cluster); err != nil {
		return false, fmt.Errorf("leave cluster: %w", err)
	}
	found, err = home.Remove(cluster)
	if dir != "" {
		s := Site{Dir: dir, cut: home.cut}
		errDir := s.locked(func() error {
			more, err := s.leave(home, cluster)
			found = found || more
			return err
		})
		err = errors.Join(err, errDir)
	}
	if err != nil {
		return found, fmt.Errorf("leave cluster: %w", err)
	}
	return found, nil
}

func (s Site) leave(home Home, cluster string) (found bool, err error) {
	revoked, err := s.revoke(cluster)
	if err != nil {
		return false, err
	}
	s.reached("revoked")
	ended, err := s.end(cluster)
	if err != nil {
		return false, err
	}
	s.reached("ended")
	again, err := home.Remove(cluster)
	if err != nil {
		return false, err
	}
	record := s.state(peerPrefix + cluster + ".json")
	found = revoked || ended || again || exists(record)
	return found, disk.Remove(record)
}

func (s Site) revoke(cluster string) (found bool, err error) {
	list, err := certs.IssuedBy(s.Dir)
	if err != nil {
		return false, err
	}
	name := certs.Role{Kind: certs.Remote, Cluster: cluster}.CommonName()
	for _, i := range list {
		found = found || i.Name == name && !i.Revoked
	}
	if found {
		_, err = certs.Revoke(s.Dir, certs.RevokeRequest{Names: []string{name}})
	}
	return found, err
}

// end gives up the exchanges with a cluster that are not over: what arrives of
// them later makes nobody a peer.
func (s Site) end(cluster string) (found bool, err error) {
	given, err := s.approvals()
	if err != nil {
		return false, err
	}
	for id, k := range given {
		if k.Request.From.Cluster == cluster && !exists(s.state(donePrefix+approvedPrefix+id)) {
			found = true
			if err := s.finish(approvedPrefix, id, finished{Cluster: cluster}); err != nil {
				return found, err
			}
		}
	}
	taken, err := s.received()
	for id, a := range taken {
		if a.From.Cluster == cluster && !exists(s.state(donePrefix+sentPrefix+id)) {
			found = true
			base := s.state(sentPrefix + id)
			err = errors.Join(err, disk.Remove(base+".key", base+".json", base+".approval.json"))
		}
	}
	return found, err
}

// approvals are those that this side has given, by request.
func (s Site) approvals() (map[string]approved, error) {
	return each[approved](s, approvedPrefix, ".json")
}

// received are the approvals that this side has got over the network, by request.
func (s Site) received() (map[string]Approval, error) {
	return each[Approval](s, sentPrefix, ".approval.json")
}

// each reads the files of the directory join whose names are prefix, an id and
// suffix.
func each[T any](s Site, prefix, suffix string) (map[string]T, error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(s.state("")), prefix+"*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("list exchanges: %w", err)
	}
	out := map[string]T{}
	for _, path := range paths {
		id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), prefix), suffix)
		if suffix == ".json" && checkID(id) != nil {
			continue
		}
		var value T
		if err := readJSON(path, &value); err != nil {
			return nil, err
		}
		out[id] = value
	}
	return out, nil
}

// gift is a certificate that an exchange gave to a cluster, as a SHA-256 sum in
// hex.
type gift struct{ cluster, sum string }

// given are all of them by serial number.
func (s Site) given() (map[string]gift, error) {
	approvals, err := s.approvals()
	if err != nil {
		return nil, err
	}
	over, err := each[finished](s, donePrefix+sentPrefix, "")
	out := map[string]gift{}
	add := func(to, text string) {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			sum := sha256.Sum256(c.Raw)
			out[fmt.Sprintf("%x", c.SerialNumber)] = gift{to, hex.EncodeToString(sum[:])}
		}
	}
	for _, a := range approvals {
		add(a.Request.From.Cluster, a.Approval.Certificate)
	}
	for _, f := range over {
		if f.Confirmation != nil {
			add(f.Cluster, f.Confirmation.Certificate)
		}
	}
	return out, err
}
