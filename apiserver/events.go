package apiserver

import (
	"context"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/notice"
	"github.com/clustermesh/clustermesh/apiserver/source"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
)

const (
	// eventRate and eventBurst bound what Events cost the API server; what is
	// more waits, and is dropped when too much waits.
	eventRate, eventBurst = 5, 50
	// lonelyCheck is how often it is looked whether anybody imports.
	lonelyCheck = 15 * time.Second
)

// events tell the owners of services what became of their export, as Kubernetes
// Events. They never hold up exporting: what arrives faster than it is told
// coalesces by service.
type events struct {
	book     *notice.Book
	sink     record.EventSink
	sent     *prometheus.CounterVec
	failed   prometheus.Counter
	readers  func() int // of other clusters
	check    time.Duration
	recorder record.EventRecorder

	wake    chan struct{}
	mu      sync.Mutex
	pending map[[2]string]noted
}

// noted is what waits to be told of a service.
type noted struct {
	state export.ServiceState
	old   bool // it was there before this process
}

// newEvents returns nil where there is nobody to tell, or Events are not wanted.
func newEvents(config Config, registry prometheus.Registerer, readers func() int) (*events, error) {
	if config.Manifests != "" || !config.Events {
		return nil, nil
	}
	sink, err := source.EventSink(config.Kubeconfig, eventRate, eventBurst)
	if err != nil {
		return nil, err
	}
	return makeEvents(config, registry, sink, readers), nil
}

func makeEvents(config Config, registry prometheus.Registerer, sink record.EventSink, readers func() int) *events {
	e := &events{
		readers: readers, check: min(lonelyCheck, max(config.NobodyImportsAfter, time.Second)),
		book: notice.NewBook(config.ClusterName, int64(config.NobodyImportsAfter/time.Second)),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "clustermesh_events_total", Help: "Kubernetes Events about services that were to be written, by reason.",
		}, []string{"reason"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "clustermesh_event_errors_total", Help: "Failed attempts to write a Kubernetes Event.",
		}),
		wake: make(chan struct{}, 1), pending: map[[2]string]noted{},
	}
	for _, r := range notice.Reasons() {
		e.sent.WithLabelValues(string(r))
	}
	e.sink = countedSink{EventSink: sink, failed: e.failed}
	registry.MustRegister(e.sent, e.failed)
	return e
}

// note takes in states of services; before the source is synced they are what
// was there already. On nil it does nothing.
func (e *events) note(states []export.ServiceState, synced bool) {
	if e == nil || len(states) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range states {
		key := [2]string{s.Namespace, s.Name}
		e.pending[key] = noted{s, !synced || e.pending[key].old}
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *events) take() (old, fresh []export.ServiceState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.pending {
		if n.old {
			old = append(old, n.state)
		} else {
			fresh = append(fresh, n.state)
		}
	}
	clear(e.pending)
	return old, fresh
}

// run tells until ctx ends. On nil it returns at once.
func (e *events) run(ctx context.Context) error {
	if e == nil {
		return nil
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(e.sink)
	e.recorder = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "clustermesh-apiserver"})
	tick := time.NewTicker(e.check)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
			old, fresh := e.take()
			e.tell(e.book.See(old, time.Now().Unix(), true))
			e.tell(e.book.See(fresh, time.Now().Unix(), false))
		case now := <-tick.C:
			e.tell(e.book.Readers(e.readers() > 0, now.Unix()))
		}
	}
}

func (e *events) tell(notices []notice.Notice) {
	for _, n := range notices {
		kind := corev1.EventTypeNormal
		if n.Warning {
			kind = corev1.EventTypeWarning
		}
		e.sent.WithLabelValues(string(n.Reason)).Inc()
		about := &corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: n.Namespace, Name: n.Name, UID: types.UID(n.UID)}
		e.recorder.Event(about, kind, string(n.Reason), n.Message)
	}
}

// countedSink gives Events names by what they say, so that several replicas, or
// a restart, do not say it twice, and counts what could not be written.
type countedSink struct {
	record.EventSink
	failed prometheus.Counter
}

// Create implements [record.EventSink].
func (s countedSink) Create(event *corev1.Event) (*corev1.Event, error) {
	named := *event
	named.Name = eventName(event)
	made, err := s.EventSink.Create(&named)
	s.count(err)
	return made, err
}

// Patch implements [record.EventSink].
func (s countedSink) Patch(event *corev1.Event, data []byte) (*corev1.Event, error) {
	named := *event
	named.Name = eventName(event)
	made, err := s.EventSink.Patch(&named, data)
	s.count(err)
	return made, err
}

func (s countedSink) count(err error) {
	if err != nil && !source.Told(err) {
		s.failed.Inc()
	}
}

// eventName is the same for the same words about the same object.
func eventName(event *corev1.Event) string {
	h := fnv.New64a()
	o := event.InvolvedObject
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s", o.UID, event.Type, event.Reason, event.Message)
	return fmt.Sprintf("%.*s.%016x", maxEventPrefix, o.Name, h.Sum64())
}

// maxEventPrefix leaves room for the rest of an object's name.
const maxEventPrefix = 200
