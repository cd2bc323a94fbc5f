package source

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
)

// kindsOrigin is where problems with finding out what a cluster has are shown.
const kindsOrigin = "kinds of objects"

// detect finds out which kinds are read, for as long as it takes the API
// server to answer. It fails only when ctx ends.
func (k *Kubernetes) detect(ctx context.Context, q *queue) (Reads, error) {
	if k.wants.settled() {
		return k.wants.choose(has{}), nil
	}
	for {
		h, err := k.ask(ctx)
		if err == nil {
			q.problem(kindsOrigin, "")
			return k.wants.choose(h), nil
		}
		if ctx.Err() != nil {
			return Reads{}, ctx.Err()
		}
		q.problem(kindsOrigin, fmt.Sprintf("ask for them: %v; check the API server, and that the account may read /apis", plain(err)))
		sleep(ctx, probeInterval)
	}
}

// ask looks up the kinds in the API server's discovery documents.
func (k *Kubernetes) ask(ctx context.Context) (has, error) {
	asking, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var h has
	stable, err := k.served(asking, ciliumGroup+"/v2")
	if err != nil {
		return has{}, err
	}
	alpha, err := k.served(asking, ciliumGroup+"/v2alpha1")
	if err != nil {
		return has{}, err
	}
	h.ciliumNodes, h.ciliumIdentities, h.ciliumEndpoints = stable["ciliumnodes"], stable["ciliumidentities"], stable["ciliumendpoints"]
	h.ciliumSlices = alpha["ciliumendpointslices"]
	for _, version := range exportVersions() {
		resources, err := k.served(asking, exportGroup+"/"+version)
		if err != nil {
			return has{}, err
		}
		if h.serviceExports == "" && resources["serviceexports"] {
			h.serviceExports = version
		}
	}
	return h, nil
}

// served returns the resources of a group and version, none if the API server
// has no such group or version. One that is starting answers 503, and not 404,
// until it knows all definitions (seen with Kubernetes 1.36), so that a start
// of both at once does not lead to a wrong choice.
func (k *Kubernetes) served(ctx context.Context, groupVersion string) (map[string]bool, error) {
	list, err := discovery.ToServerResourcesInterfaceWithContext(k.clients.Typed.Discovery()).ServerResourcesForGroupVersionWithContext(ctx, groupVersion)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	resources := map[string]bool{}
	for i := range list.APIResources {
		resources[list.APIResources[i].Name] = true
	}
	return resources, nil
}
