package kube

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Objects is what one cluster's API holds at a moment. The objects are shared
// and must not be changed.
type Objects struct {
	Cluster    string
	Namespaces []*corev1.Namespace
	Services   []*corev1.Service
	Slices     []*discoveryv1.EndpointSlice
	Nodes      []*corev1.Node
}

// View follows a cluster's API. It is safe for concurrent use.
type View struct {
	cluster string
	factory informers.SharedInformerFactory

	mu      sync.Mutex
	version uint64
	changed time.Time
}

// Follow starts following the cluster's API until ctx ends, and returns once
// the first listing is complete.
func (k *Cluster) Follow(ctx context.Context) (*View, error) {
	v := &View{cluster: k.Name, factory: informers.NewSharedInformerFactory(k.Client, 0)}
	followed := []cache.SharedIndexInformer{
		v.factory.Core().V1().Namespaces().Informer(),
		v.factory.Core().V1().Services().Informer(),
		v.factory.Discovery().V1().EndpointSlices().Informer(),
		v.factory.Core().V1().Nodes().Informer(),
	}
	note := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { v.note() },
		UpdateFunc: func(any, any) { v.note() },
		DeleteFunc: func(any) { v.note() },
	}
	for _, informer := range followed {
		if _, err := informer.AddEventHandler(note); err != nil {
			return nil, err
		}
	}
	v.factory.StartWithContext(ctx)
	v.factory.WaitForCacheSyncWithContext(ctx)
	return v, ctx.Err()
}

func (v *View) note() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.version++
	v.changed = time.Now()
}

// Version grows with every change; changed is when the last one was seen.
func (v *View) Version() (version uint64, changed time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.version, v.changed
}

// Objects returns what the API holds now, as far as it was seen.
func (v *View) Objects() Objects {
	all := labels.Everything()
	o := Objects{Cluster: v.cluster}
	// A lister reads from memory: its error is always nil.
	o.Namespaces, _ = v.factory.Core().V1().Namespaces().Lister().List(all)
	o.Services, _ = v.factory.Core().V1().Services().Lister().List(all)
	o.Slices, _ = v.factory.Discovery().V1().EndpointSlices().Lister().List(all)
	o.Nodes, _ = v.factory.Core().V1().Nodes().Lister().List(all)
	return o
}
