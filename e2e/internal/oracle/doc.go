// Package oracle says what a node's maps must hold, from the Kubernetes objects
// of all clusters and nothing else. It is written for plainness: it recomputes
// everything each time and shares no code with the product.
package oracle
