// Package check renders the Helm chart, the kustomize base and the systemd units
// below deploy/ and checks what comes out: that Kubernetes' own types take every
// object, that the commands take every flag, that rights are what is needed and
// no more, and that contradictions in the values are refused by name. It is a
// module of its own, so that the product does not depend on Helm.
package check
