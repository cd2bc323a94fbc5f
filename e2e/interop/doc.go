// Package interop checks the product against Cilium's own code: the client with
// which Cilium's agents read other clusters, the store and type packages with
// which Cilium's exporters write, and KVStoreMesh. README.md says what of it
// runs here and what does not.
//
// It is a module of its own, so that the product links nothing of Cilium.
package interop
