package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// How often the API server is asked for a sign of life, and how long it has.
const (
	probeInterval = 5 * time.Second
	probeTimeout  = 5 * time.Second
)

const protobuf = "application/vnd.kubernetes.protobuf"

// serviceAccountToken exists in every pod that may talk to its API server.
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// InCluster reports whether the process runs in a pod with a service account.
func InCluster() bool {
	_, err := os.Stat(serviceAccountToken)
	return os.Getenv("KUBERNETES_SERVICE_HOST") != "" && !errors.Is(err, fs.ErrNotExist)
}

// Clients are the clients of one cluster: Typed for Kubernetes' own kinds,
// Dynamic for those that others define.
type Clients struct {
	Typed   kubernetes.Interface
	Dynamic dynamic.Interface
}

// Connect returns clients for the cluster of a kubeconfig file, or with an
// empty path for the cluster the process runs in. It reads files and talks to
// nobody. The clients have no rate limit: they make at most seven watches.
func Connect(kubeconfig string) (Clients, error) {
	config, err := clientConfig(kubeconfig)
	if err != nil {
		return Clients{}, fmt.Errorf("read kubeconfig %q: %w; check that the file names a cluster and a user that exist", kubeconfig, err)
	}
	config.QPS = -1
	config.UserAgent = "clustermesh-apiserver"
	custom, err := dynamic.NewForConfig(config)
	if err != nil {
		return Clients{}, err
	}
	config.AcceptContentTypes = protobuf + ",application/json"
	config.ContentType = protobuf
	typed, err := kubernetes.NewForConfig(config)
	return Clients{Typed: typed, Dynamic: custom}, err
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

// Kubernetes follows the objects of a Kubernetes API server. Lost connections
// and expired watches are its own business: it lists again and delivers the
// difference.
//
// Of the kinds that not every cluster has it reads what it was told to, or what
// the API server serves when it starts. One that is not served, or no longer, is
// a [Problem] until it is.
type Kubernetes struct {
	clients Clients
	wants   Wants
	log     *slog.Logger
	feeds   feeds
}

// NewKubernetes returns a source that has not begun; a nil log discards.
func NewKubernetes(clients Clients, wants Wants, log *slog.Logger) *Kubernetes {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Kubernetes{clients: clients, wants: wants, log: log}
}

// resource is one kind of object and how to list and watch it.
type resource struct {
	name    string
	object  runtime.Object
	list    func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch   func(context.Context, metav1.ListOptions) (watch.Interface, error)
	dynamic bool // whether it is read by the dynamic client
}

// lister is what all typed clients have in common.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func newResource[L runtime.Object](name string, object runtime.Object, client lister[L]) resource {
	list := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) }
	return resource{name: name, object: object, list: list, watch: client.Watch}
}

// always are the resources that are read in any case.
func (k *Kubernetes) always() []resource {
	const all = metav1.NamespaceAll
	core := k.clients.Typed.CoreV1()
	return []resource{
		newResource("namespaces", &corev1.Namespace{}, core.Namespaces()),
		newResource("services", &corev1.Service{}, core.Services(all)),
		newResource("endpointslices", &discoveryv1.EndpointSlice{}, k.clients.Typed.DiscoveryV1().EndpointSlices(all)),
	}
}

// chosen are the resources that are read besides.
func (k *Kubernetes) chosen(r Reads) []resource {
	var resources []resource
	if r.ServiceExports != "" {
		resources = append(resources, k.custom(exportGroup, r.ServiceExports, "serviceexports", "ServiceExport"))
	}
	if !r.Cilium {
		core := k.clients.Typed.CoreV1()
		return append(resources, newResource("nodes", &corev1.Node{}, core.Nodes()),
			newResource("pods", &corev1.Pod{}, core.Pods(metav1.NamespaceAll)))
	}
	endpoints := k.custom(ciliumGroup, "v2", "ciliumendpoints", "CiliumEndpoint")
	if r.CiliumSlices {
		endpoints = k.custom(ciliumGroup, "v2alpha1", "ciliumendpointslices", "CiliumEndpointSlice")
	}
	return append(resources, k.custom(ciliumGroup, "v2", "ciliumnodes", "CiliumNode"),
		k.custom(ciliumGroup, "v2", "ciliumidentities", "CiliumIdentity"), endpoints)
}

func (k *Kubernetes) custom(group, version, plural, kind string) resource {
	expected := &unstructured.Unstructured{}
	expected.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
	client := k.clients.Dynamic.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: plural})
	list := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) }
	return resource{name: plural, object: expected, list: list, watch: client.Watch, dynamic: true}
}

// Run delivers batches until ctx ends, and then returns nil. The first batch
// with changes holds all objects.
func (k *Kubernetes) Run(ctx context.Context, sink Sink) error {
	always := k.always()
	q := newQueue(append(names(always), kindsOrigin)...)
	k.feeds.begin(q)
	group, ctx := errgroup.WithContext(ctx)
	k.follow(ctx, group, always, q)
	group.Go(func() error {
		reads, err := k.detect(ctx, q)
		if err != nil {
			return nil // the caller asked for the end
		}
		more := k.chosen(reads)
		q.decide(reads, names(more))
		k.follow(ctx, group, more, q)
		return nil
	})
	group.Go(func() error {
		k.probe(ctx, q)
		return nil
	})
	group.Go(func() error { return deliver(ctx, q, sink) })
	return group.Wait()
}

func names(resources []resource) []string {
	var all []string
	for _, r := range resources {
		all = append(all, r.name)
	}
	return all
}

func (k *Kubernetes) follow(ctx context.Context, group *errgroup.Group, resources []resource, q *queue) {
	for _, r := range resources {
		group.Go(func() error {
			k.reflect(ctx, r, q)
			return nil
		})
	}
}

func deliver(ctx context.Context, q *queue, sink Sink) error {
	for {
		b, err := q.take(ctx)
		if err != nil {
			return nil // the caller asked for the end
		}
		sink(b)
		for _, w := range b.waiting {
			close(w)
		}
	}
}

func (k *Kubernetes) reflect(ctx context.Context, r resource, q *queue) {
	logger := klog.Logger(logr.FromSlogHandler(k.log.Handler()))
	store := &feed{resource: r.name, queue: q, known: map[key]any{}, bad: map[key]struct{}{}}
	k.feeds.add(store)
	backoff := wait.Backoff{Duration: 200 * time.Millisecond, Cap: 3 * time.Second, Steps: 16, Factor: 2, Jitter: 1}
	options := cache.ReflectorOptions{Name: r.name, Logger: &logger, Backoff: &backoff}
	cache.NewReflectorWithOptions(k.listWatch(r, q), r.object, store, options).RunWithContext(ctx)
}

// probe asks the API server for a sign of life, because a watch on a server
// that hangs stays silent for most of a minute before it fails.
func (k *Kubernetes) probe(ctx context.Context, q *queue) {
	server := discovery.ToServerVersionInterfaceWithContext(k.clients.Typed.Discovery())
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err := server.ServerVersionWithContext(asking)
		cancel()
		switch {
		case err == nil:
			q.problem("api server", "")
		case ctx.Err() == nil:
			q.problem("api server", fmt.Sprintf("no sign of life: %v; what is published stays as it is", plain(err)))
		}
		sleep(ctx, probeInterval)
	}
}

// plain leaves out the URL of a request, which differs at each attempt.
func plain(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// listWatch notes how the calls end, so that an API server that refuses or
// cannot be reached is visible as the source's problem.
func (k *Kubernetes) listWatch(r resource, q *queue) cache.ListerWatcher {
	note := func(what string, err error) {
		if err == nil {
			q.problem(r.name, "")
			return
		}
		if !errors.Is(err, context.Canceled) {
			q.problem(r.name, fmt.Sprintf("%s: %v; check the API server, and that the account may list and watch %s", what, plain(err), r.name))
		}
	}
	var client any = k.clients.Typed // which may not be able to stream lists
	if r.dynamic {
		client = k.clients.Dynamic
	}
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector(r.name)
			list, err := r.list(ctx, o)
			note("list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector(r.name)
			w, err := r.watch(ctx, o)
			note("watch", err)
			return w, err
		},
	}, client)
}

// selector leaves finished pods to the API server: they are not exported.
func selector(resource string) string {
	if resource == "pods" {
		return "status.phase!=Succeeded,status.phase!=Failed"
	}
	return ""
}
