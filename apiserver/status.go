package apiserver

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/apiserver/source"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// status is what health and metrics show. It is safe for concurrent use.
type status struct {
	version  string
	revision string
	kinds    []schema.Kind
	metrics  descriptions

	mu             sync.Mutex
	synced         bool
	life           *life
	past           map[schema.Kind]kvstore.PublisherStats // of ended lives
	lives          int
	sourceProblems []source.Problem
	sourceErrors   int
	journalErrors  int
	objects        map[string]int
	records        map[schema.Kind]int
	exportProblems []export.Problem
	identities     identity.Stats
	problemReasons map[export.Reason]int
	source         string        // of identities, "" until known
	storeFailure   string        // why the last life ended, "" while one goes on
	bootstrap      time.Duration // until everything was published, 0 before
	marker         schema.Marker // the newest
	unmarked       string        // why the next one could not be written
}

func newStatus(config Config) *status {
	return &status{version: config.Version, revision: config.Revision, kinds: config.kinds(), metrics: newDescriptions(), past: map[schema.Kind]kvstore.PublisherStats{}}
}

func (s *status) setSynced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = true
}

// identitySource names where identities come from, as --identity-source does.
func identitySource(cilium bool) string {
	if cilium {
		return "cilium"
	}
	return "own"
}

func (s *status) setIdentitySource(cilium bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.source = identitySource(cilium)
}

func (s *status) identitySource() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source
}

// setBootstrap notes how long it took until everything was published for the
// first time.
func (s *status) setBootstrap(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.storeFailure = ""
	if s.bootstrap == 0 {
		s.bootstrap = d
	}
}

// setMarker notes the newest marker, or why there is none.
func (s *status) setMarker(m schema.Marker, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unmarked = ""; err != nil {
		s.unmarked = err.Error()
		return
	}
	s.marker = m
}

func (s *status) newest() schema.Marker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marker
}

// setLife replaces the life; counters of the ended one go on counting.
func (s *status) setLife(l *life) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil {
		for k, p := range s.life.publishers {
			s.past[k] = add(s.past[k], p.Stats())
		}
	}
	if l != nil {
		s.lives++
	}
	s.life = l
}

// setStoreFailure notes why a life of the store ended. The next one that
// publishes everything forgets it.
func (s *status) setStoreFailure(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.storeFailure = strings.ReplaceAll(err.Error(), "\n", ", ")
	if errors.Is(err, syscall.ENOSPC) {
		s.storeFailure += "; free space on the disk of --data-dir, the store is rebuilt by itself"
	}
}

// current returns the present life, nil between two.
func (s *status) current() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// remoteReaders counts the connections of other clusters to the present life.
func (s *status) remoteReaders() int {
	if l := s.current(); l != nil {
		return l.server.RemoteReaders()
	}
	return 0
}

func add(a, b kvstore.PublisherStats) kvstore.PublisherStats {
	a.Puts += b.Puts
	a.Deletes += b.Deletes
	a.Errors += b.Errors
	return a
}

func (s *status) setSource(problems []source.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sourceProblems = problems
}

func (s *status) sourceFailed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sourceErrors++
}

func (s *status) journalFailed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journalErrors++
}

func (s *status) setExport(e *export.Exporter, identities identity.Stats) {
	objects, records, problems := e.Objects(), e.Counts(), e.Problems()
	reasons := map[export.Reason]int{}
	for _, p := range problems {
		reasons[p.Reason]++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects, s.records, s.exportProblems, s.problemReasons, s.identities = objects, records, problems, reasons, identities
}

// count is how many records of a kind are exported.
func (s *status) count(k schema.Kind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[k]
}

// missing says what stands between the apiserver and being ready.
func (s *status) missing() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []string
	if !s.synced {
		missing = append(missing, "source: not synced")
	}
	if s.life == nil && s.storeFailure != "" {
		return append(missing, "store: not running: "+s.storeFailure)
	}
	if s.life == nil {
		return append(missing, "store: not running")
	}
	for _, k := range s.kinds {
		if p := s.life.publishers[k]; !done(p) {
			missing = append(missing, fmt.Sprintf("publish %s: not complete, %d pending", k, p.Pending()))
		}
	}
	return missing
}

func done(p *kvstore.Publisher) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

// complaints lists what is wrong but does not keep the apiserver from serving.
func (s *status) complaints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	if s.unmarked != "" {
		all = append(all, "marker: "+s.unmarked)
	}
	for _, p := range s.sourceProblems {
		all = append(all, "source: "+p.String())
	}
	for _, p := range s.exportProblems {
		all = append(all, fmt.Sprintf("export: %s: %s: %s", p.Object, p.Reason, p.Message))
	}
	return all
}
