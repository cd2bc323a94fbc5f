package apiserver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
)

// eventSink remembers Events, as an API server that can be slow or refuse.
type eventSink struct {
	mu      sync.Mutex
	written []*corev1.Event
	refuse  error
	block   chan struct{}
}

func (s *eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	if s.block != nil {
		<-s.block
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.written = append(s.written, e)
	return e, nil
}

func (s *eventSink) Update(e *corev1.Event) (*corev1.Event, error) { return s.Create(e) }

func (s *eventSink) Patch(e *corev1.Event, _ []byte) (*corev1.Event, error) { return s.Create(e) }

func (s *eventSink) find(reason string) *corev1.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.written {
		if e.Reason == reason {
			return e
		}
	}
	return nil
}

func runEvents(t *testing.T, sink *eventSink) *events {
	t.Helper()
	e := makeEvents(Config{ClusterName: "east", NobodyImportsAfter: time.Second}, prometheus.NewRegistry(), sink, func() int { return 0 })
	e.check = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return e
}

var shared = []export.ServiceState{{Namespace: "shop", Name: "web", UID: "u1", Exported: true}}

func TestEventsAreAboutTheService(t *testing.T) {
	sink := &eventSink{}
	e := runEvents(t, sink)
	e.note(shared, true)
	w := &world{T: t}
	for _, reason := range []string{"Exported", "NobodyImports"} {
		w.eventually(reason+" is told", func() bool { return sink.find(reason) != nil })
	}
	got := sink.find("Exported")
	about := corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: "shop", Name: "web", UID: "u1"}
	if got.InvolvedObject != about || got.Namespace != "shop" || got.Type != corev1.EventTypeNormal || got.Source.Component != "clustermesh-apiserver" {
		t.Errorf("the Event is %+v", got)
	}
	if again := eventName(got); got.Name != again || sink.find("NobodyImports").Type != corev1.EventTypeWarning {
		t.Errorf("its name is %q, not %q", got.Name, again)
	}
}

// TestEventsHoldUpNothing: an API server that does not answer costs the exporter
// nothing, however much there is to tell.
func TestEventsHoldUpNothing(t *testing.T) {
	sink := &eventSink{block: make(chan struct{})}
	e := runEvents(t, sink)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 10_000 {
			s := shared[0]
			s.Exported = i%2 == 0
			e.note([]export.ServiceState{s}, true)
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("exporting waits for Events")
	}
	close(sink.block)
}

func TestEventsThatFailAreCounted(t *testing.T) {
	sink := &eventSink{refuse: errors.New("no room")}
	counted := countedSink{EventSink: sink, failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "x"})}
	if _, err := counted.Create(&corev1.Event{}); err == nil {
		t.Error("the refusal is lost")
	}
	if got := counterValue(t, counted.failed); got != 1 {
		t.Errorf("%v failures are counted", got)
	}
}

// TestEventsOfTheFirstList: what was exported before this process is not told
// again, what is wrong is.
func TestEventsOfTheFirstList(t *testing.T) {
	sink := &eventSink{}
	e := runEvents(t, sink)
	bad := shared[0]
	bad.Problems = []export.Problem{{Object: "Service shop/web", Reason: export.TooLarge, Message: "too many"}}
	e.note([]export.ServiceState{bad}, false)
	(&world{T: t}).eventually("the problem is told", func() bool { return sink.find("TooLarge") != nil })
	if sink.find("Exported") != nil {
		t.Error("it is told that it is exported")
	}
}

func counterValue(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
