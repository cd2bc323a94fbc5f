package source

import (
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

// apiEvent is a change in an API server: a service's new version, or its end.
type apiEvent struct {
	name    string
	version uint64
	deleted bool
}

func (e apiEvent) object() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: e.name, ResourceVersion: strconv.FormatUint(e.version, 10)}}
}

// present is what exists after some events: versions by name.
func present(events []apiEvent) map[string]uint64 {
	all := map[string]uint64{}
	for _, e := range events {
		if all[e.name] = e.version; e.deleted {
			delete(all, e.name)
		}
	}
	return all
}

// TestReached: a feed that has heard all that a list includes has reached it,
// and one that has reached it lacks nothing of the list.
func TestReached(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var events []apiEvent
		version := uint64(0)
		for range rapid.IntRange(0, 15).Draw(t, "events") {
			version += rapid.Uint64Range(1, 3).Draw(t, "step")
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
			_, there := present(events)[name]
			events = append(events, apiEvent{name, version, there && rapid.Bool().Draw(t, "deleted")})
		}
		listed := rapid.IntRange(0, len(events)).Draw(t, "listed")
		heard := rapid.IntRange(0, len(events)).Draw(t, "heard")
		list := &corev1.ServiceList{}
		if listed > 0 {
			list.ResourceVersion = strconv.FormatUint(events[listed-1].version, 10)
		}
		for name, v := range present(events[:listed]) {
			list.Items = append(list.Items, *apiEvent{name: name, version: v}.object())
		}
		now, err := snapshotOf(list)
		if err != nil {
			t.Fatal(err)
		}
		got := now.reached(feedOf(t, events[:heard]))
		if heard >= listed && !got {
			t.Fatalf("%d of %v heard, %d listed: not reached", heard, events, listed)
		}
		if heard < listed && got && !sameKeys(present(events[:heard]), present(events[:listed])) {
			t.Fatalf("%d of %v heard, %d listed: reached too early", heard, events, listed)
		}
	})
}

func sameKeys(a, b map[string]uint64) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// feedOf is a feed that has heard events.
func feedOf(t *rapid.T, events []apiEvent) *feed {
	f := &feed{resource: "services", queue: newQueue("services"), known: map[key]any{}, bad: map[key]struct{}{}}
	for _, e := range events {
		tell := f.Update
		if e.deleted {
			tell = f.Delete
		}
		if err := tell(e.object()); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestVersionsThatCannotBeCompared(t *testing.T) {
	for _, text := range []string{"x", "-1", "1.5", "99999999999999999999"} {
		if _, err := versionOf(text); err == nil {
			t.Errorf("%q is compared", text)
		}
	}
}
