package peers

import (
	"crypto/x509"
	"maps"
	"path/filepath"
	"slices"
)

// settle decides which state of each file is in force. Files that did not
// change, or became bad, keep theirs; a changed one takes effect unless it
// conflicts with those or with another changed one. Among files that are all
// new, both sides of a conflict are refused: nobody can tell which is right. What
// a file takes back takes effect in any case: one that claims no more than before
// is not in the way of a newcomer, the newcomer is in its way.
func (d *Directory) settle(removed bool) {
	kept, fresh := d.split()
	changed := d.keepClaims(kept, fresh) || removed
	for refused := d.conflicts(kept, fresh); len(refused) > 0; refused = d.conflicts(kept, fresh) {
		for name, err := range refused {
			d.problem(filepath.Join(d.path, name+".yaml"), err)
			if was := d.files[name].inForce; was != nil {
				less := was.without(fresh[name])
				changed = changed || less != was
				d.files[name].inForce, kept[name] = less, less
			}
			delete(fresh, name)
		}
	}
	for name, p := range fresh {
		d.files[name].inForce = p
		kept[name] = p
	}
	if changed || len(fresh) > 0 {
		d.set.Replace(newTable(slices.Collect(maps.Values(kept))))
		d.log.Info("peers changed", "n", len(kept))
	}
}

// keepClaims puts in force, before conflicts are looked for, the fresh states
// that can be in no conflict which those in force are not in.
func (d *Directory) keepClaims(kept, fresh map[string]*Peer) (changed bool) {
	for name, p := range fresh {
		if was := d.files[name].inForce; was != nil && p.claimsAs(was) {
			d.files[name].inForce, kept[name] = p, p
			delete(fresh, name)
			changed = true
		}
	}
	return changed
}

// claimsAs reports whether both states lay claim to the same certificates.
func (p *Peer) claimsAs(was *Peer) bool {
	return p.Identity == was.Identity && slices.Equal(p.SharesCAWith, was.SharesCAWith) && slices.EqualFunc(p.CAs, was.CAs, (*x509.Certificate).Equal)
}

// without is p less the access that the other state of it takes back, or p itself
// if that takes back nothing.
func (p *Peer) without(next *Peer) *Peer {
	less := *p
	less.Revoked = p.Revoked || next.Revoked
	if !next.Expires.IsZero() && (p.Expires.IsZero() || next.Expires.Before(p.Expires)) {
		less.Expires = next.Expires
	}
	less.RevokedCertificates = slices.Clone(p.RevokedCertificates)
	for _, sum := range next.RevokedCertificates {
		if !less.lists(sum) {
			less.RevokedCertificates = append(less.RevokedCertificates, sum)
		}
	}
	if less.Revoked == p.Revoked && less.Expires.Equal(p.Expires) && len(less.RevokedCertificates) == len(p.RevokedCertificates) {
		return p
	}
	return &less
}

// split parts the good states that are in force from those that are not yet.
func (d *Directory) split() (kept, fresh map[string]*Peer) {
	kept, fresh = map[string]*Peer{}, map[string]*Peer{}
	for name, e := range d.files {
		switch {
		case e.peer != nil && e.peer != e.inForce:
			fresh[name] = e.peer
		case e.inForce != nil:
			kept[name] = e.inForce
		}
	}
	return kept, fresh
}

// conflicts returns the fresh states that conflict with any other.
func (d *Directory) conflicts(kept, fresh map[string]*Peer) map[string]error {
	refused := map[string]error{}
	for name, p := range fresh {
		for _, others := range []map[string]*Peer{kept, fresh} {
			for _, other := range slices.Sorted(maps.Keys(others)) {
				if other == name || refused[name] != nil {
					continue
				}
				if err := conflict(p, others[other]); err != nil {
					refused[name] = err
				}
			}
		}
	}
	return refused
}
