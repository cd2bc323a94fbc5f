package source

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// EventSink returns where Events of the cluster of a kubeconfig file, or with an
// empty path of the cluster the process runs in, are written: so many requests
// in a second, and so many at once. It has a client of its own, so that Events
// do not wait for anything else nor it for them.
func EventSink(kubeconfig string, rate float32, burst int) (record.EventSink, error) {
	config, err := clientConfig(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %q: %w; check that the file names a cluster and a user that exist", kubeconfig, err)
	}
	config.QPS, config.Burst = rate, burst
	config.UserAgent = "clustermesh-apiserver"
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for Events: %w", err)
	}
	return &typedcorev1.EventSinkImpl{Interface: clients.CoreV1().Events("")}, nil
}

// Told reports whether an Event could not be written because it is there, or
// because it is to be written anew: no failures.
func Told(err error) bool { return apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) }
