package peers

import "sync"

// Set holds the table in force and tells when it is replaced. Its methods are
// safe for concurrent use. A new set is empty: nobody is a peer.
type Set struct {
	mu      sync.Mutex
	table   *Table
	changed chan struct{}
}

// NewSet returns an empty set.
func NewSet() *Set { return &Set{table: newTable(nil), changed: make(chan struct{})} }

// Current returns the table in force and a channel that is closed when it no
// longer is.
func (s *Set) Current() (*Table, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table, s.changed
}

// Replace puts another table in force.
func (s *Set) Replace(t *Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table = t
	close(s.changed)
	s.changed = make(chan struct{})
}
