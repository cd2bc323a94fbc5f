package export

import (
	"strings"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
)

// The labels of an identity that do not come from the pod's own labels, as
// Cilium spells them (pkg/k8s/apis/cilium.io of v1.20).
const (
	clusterLabel        = "k8s:io.cilium.k8s.policy.cluster"
	namespaceLabel      = "k8s:io.kubernetes.pod.namespace"
	serviceAccountLabel = "k8s:io.cilium.k8s.policy.serviceaccount"
	namespaceMetaLabel  = "k8s:io.cilium.k8s.namespace.labels."
)

// irrelevant lists the prefixes of label keys that are no part of an identity:
// what Cilium's default filter leaves out (its documentation, "Limiting
// Identity-Relevant Labels"). They change with every rollout or are different
// for every pod. app.kubernetes.io is not below any of them. The keys below
// io.cilium.k8s. are left out as well, so that no pod can claim a cluster,
// namespace or service account that is not its own.
func irrelevant() []string {
	return []string{
		"io.kubernetes", "kubernetes.io", "k8s.io", "io.cilium.k8s.",
		"pod-template-generation", "pod-template-hash", "controller-revision-hash",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
		"batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/controller-uid",
		"controller-uid", "annotation", "etcd_node",
	}
}

func relevant(key string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(key, p) {
			return false
		}
	}
	domain, _, _ := strings.Cut(key, "/")
	return !strings.Contains(domain, "beta.kubernetes.io")
}

// identityLabels returns the text of a pod's identity.
func (e *Exporter) identityLabels(p *corev1.Pod, ns *corev1.Namespace) string {
	labels := map[string]string{clusterLabel: e.config.Cluster, namespaceLabel: p.Namespace}
	if p.Spec.ServiceAccountName != "" {
		labels[serviceAccountLabel] = p.Spec.ServiceAccountName
	}
	prefixes := irrelevant()
	for key, value := range p.Labels {
		if relevant(key, prefixes) {
			putLabel(labels, "k8s:"+key, value)
		}
	}
	for key, value := range ns.Labels {
		putLabel(labels, namespaceMetaLabel+key, value)
	}
	identity := schema.Identity{Labels: labels}
	return string(identity.Encode())
}

// putLabel leaves out what cannot be told apart in the text. Kubernetes allows
// no such label; a file may hold one.
func putLabel(labels map[string]string, key, value string) {
	if strings.ContainsAny(key, "=;") || strings.Contains(value, ";") {
		return
	}
	labels[key] = value
}
