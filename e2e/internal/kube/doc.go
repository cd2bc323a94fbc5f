// Package kube runs real Kubernetes control planes (etcd, kube-apiserver,
// kube-controller-manager) without containers, and plays the kubelet for them:
// pods are objects whose status this package writes, so that the real
// EndpointSlice controller makes the slices.
package kube
