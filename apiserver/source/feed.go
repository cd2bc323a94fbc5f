package source

import (
	"github.com/clustermesh/clustermesh/apiserver/export"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// feed is the store of one reflector: it passes changes on to the queue and
// remembers what it passed, to tell after a new list what is gone. One
// reflector uses it, from one goroutine.
type feed struct {
	resource string
	queue    *queue
	known    map[key]any
	bad      map[key]struct{} // objects that are a problem
	seen     uint64           // highest version of a change or list; under the queue's lock
}

var _ cache.TransformingStore = (*feed)(nil)

// Transformer has objects trimmed as soon as they are decoded.
func (f *feed) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return trim(object), nil }
}

// Add takes a new object.
func (f *feed) Add(object any) error { return f.Update(object) }

// Update takes a changed object.
func (f *feed) Update(object any) error {
	object = trim(object)
	o, ok := object.(metav1.Object)
	if !ok || kindOf(object) == "" {
		return wrongType(object)
	}
	if f.refuse(o) {
		f.queue.update(func() { f.see(o.GetResourceVersion()) })
		return nil
	}
	f.queue.update(func() {
		f.put(keyOf(o), object)
		f.see(o.GetResourceVersion())
	})
	return nil
}

// refuse makes an unreadable object a problem, and a readable one none.
func (f *feed) refuse(o metav1.Object) bool {
	u, bad := o.(*unreadable)
	if !bad {
		f.forgive(keyOf(o))
		return false
	}
	f.bad[keyOf(o)] = struct{}{}
	f.queue.problem(keyOf(o).String(), u.reason)
	return true
}

func (f *feed) forgive(k key) {
	if _, was := f.bad[k]; was {
		delete(f.bad, k)
		f.queue.problem(k.String(), "")
	}
}

// Delete takes a deleted object, or the tombstone of one whose last state was
// missed.
func (f *feed) Delete(object any) error {
	if stone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = stone.Obj
	}
	object = trim(object)
	o, ok := object.(metav1.Object)
	if !ok || kindOf(object) == "" {
		return wrongType(object)
	}
	f.forgive(keyOf(o))
	f.queue.update(func() {
		f.remove(keyOf(o))
		f.see(o.GetResourceVersion())
	})
	return nil
}

// Replace takes the whole list: what it lacks is gone.
func (f *feed) Replace(list []any, version string) error {
	present := map[key]any{}
	for _, object := range list {
		object = trim(object)
		o, ok := object.(metav1.Object)
		if !ok || kindOf(object) == "" {
			return wrongType(object)
		}
		if present[keyOf(o)] = object; f.refuse(o) {
			present[keyOf(o)] = f.known[keyOf(o)]
		}
	}
	for k := range f.bad {
		if _, still := present[k]; !still {
			f.forgive(k)
		}
	}
	f.queue.update(func() {
		f.replace(present)
		f.see(version)
	})
	return nil
}

func (f *feed) replace(present map[key]any) {
	for k := range f.known {
		if _, still := present[k]; !still {
			f.remove(k)
		}
	}
	for k, object := range present {
		if object != nil && !sameVersion(f.known[k], object) {
			f.put(k, object)
		}
	}
	delete(f.queue.missing, f.resource)
}

// sameVersion spares a new list of unchanged objects the work downstream.
func sameVersion(old, now any) bool {
	a, ok := old.(metav1.Object)
	if !ok {
		return false
	}
	b := now.(metav1.Object)
	return a.GetResourceVersion() != "" && a.GetResourceVersion() == b.GetResourceVersion()
}

func (f *feed) put(k key, object any) {
	f.known[k] = object
	f.queue.changes[k] = export.Change{Object: object}
}

func (f *feed) remove(k key) {
	if object, ok := f.known[k]; ok {
		delete(f.known, k)
		f.queue.changes[k] = export.Change{Deleted: true, Object: object}
	}
}

// Resync has nothing to do: the queue keeps what was not taken.
func (f *feed) Resync() error { return nil }
