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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
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

// Connect returns a client for the cluster of a kubeconfig file, or with an
// empty path for the cluster the process runs in. It reads files and talks to
// nobody. The client has no rate limit: it makes five watches.
func Connect(kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientConfig(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %q: %w; check that the file names a cluster and a user that exist", kubeconfig, err)
	}
	config.AcceptContentTypes = protobuf + ",application/json"
	config.ContentType = protobuf
	config.QPS = -1
	config.UserAgent = "clustermesh-apiserver"
	return kubernetes.NewForConfig(config)
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
type Kubernetes struct {
	client kubernetes.Interface
	log    *slog.Logger
}

// NewKubernetes returns a source that has not begun; a nil log discards.
func NewKubernetes(client kubernetes.Interface, log *slog.Logger) *Kubernetes {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Kubernetes{client: client, log: log}
}

// resource is one kind of object and how to list and watch it.
type resource struct {
	name   string
	object runtime.Object
	list   func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch  func(context.Context, metav1.ListOptions) (watch.Interface, error)
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

func (k *Kubernetes) resources() []resource {
	const all = metav1.NamespaceAll
	core := k.client.CoreV1()
	return []resource{
		newResource("namespaces", &corev1.Namespace{}, core.Namespaces()),
		newResource("services", &corev1.Service{}, core.Services(all)),
		newResource("endpointslices", &discoveryv1.EndpointSlice{}, k.client.DiscoveryV1().EndpointSlices(all)),
		newResource("nodes", &corev1.Node{}, core.Nodes()),
		newResource("pods", &corev1.Pod{}, core.Pods(all)),
	}
}

// Run delivers batches until ctx ends, and then returns nil. The first batch
// with changes holds all objects.
func (k *Kubernetes) Run(ctx context.Context, sink Sink) error {
	resources := k.resources()
	var names []string
	for _, r := range resources {
		names = append(names, r.name)
	}
	q := newQueue(names...)
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range resources {
		group.Go(func() error {
			k.reflect(ctx, r, q)
			return nil
		})
	}
	group.Go(func() error {
		k.probe(ctx, q)
		return nil
	})
	group.Go(func() error { return deliver(ctx, q, sink) })
	return group.Wait()
}

func deliver(ctx context.Context, q *queue, sink Sink) error {
	for {
		b, err := q.take(ctx)
		if err != nil {
			return nil // the caller asked for the end
		}
		sink(b)
	}
}

func (k *Kubernetes) reflect(ctx context.Context, r resource, q *queue) {
	logger := klog.Logger(logr.FromSlogHandler(k.log.Handler()))
	store := &feed{resource: r.name, queue: q, known: map[key]any{}}
	backoff := wait.Backoff{Duration: 200 * time.Millisecond, Cap: 3 * time.Second, Steps: 16, Factor: 2, Jitter: 1}
	options := cache.ReflectorOptions{Name: r.name, Logger: &logger, Backoff: &backoff}
	cache.NewReflectorWithOptions(k.listWatch(r, q), r.object, store, options).RunWithContext(ctx)
}

// probe asks the API server for a sign of life, because a watch on a server
// that hangs stays silent for most of a minute before it fails.
func (k *Kubernetes) probe(ctx context.Context, q *queue) {
	server := discovery.ToServerVersionInterfaceWithContext(k.client.Discovery())
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
	}, k.client)
}

// selector leaves finished pods to the API server: they are not exported.
func selector(resource string) string {
	if resource == "pods" {
		return "status.phase!=Succeeded,status.phase!=Failed"
	}
	return ""
}
