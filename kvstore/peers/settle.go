package peers

import (
	"maps"
	"path/filepath"
	"slices"
)

// settle decides which state of each file is in force. Files that did not
// change, or became bad, keep theirs; a changed one takes effect unless it
// conflicts with those or with another changed one. Among files that are all
// new, both sides of a conflict are refused: nobody can tell which is right.
func (d *Directory) settle(removed bool) {
	kept, fresh := d.split()
	for refused := d.conflicts(kept, fresh); len(refused) > 0; refused = d.conflicts(kept, fresh) {
		for name, err := range refused {
			d.problem(filepath.Join(d.path, name+".yaml"), err)
			delete(fresh, name)
			if p := d.files[name].inForce; p != nil {
				kept[name] = p
			}
		}
	}
	for name, p := range fresh {
		d.files[name].inForce = p
		kept[name] = p
	}
	if removed || len(fresh) > 0 {
		d.set.Replace(newTable(slices.Collect(maps.Values(kept))))
		d.log.Info("peers changed", "n", len(kept))
	}
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
