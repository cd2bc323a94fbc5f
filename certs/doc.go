// Package certs issues the certificates of a mesh and keeps TLS configurations
// current while the files behind them are replaced.
//
// Three kinds of leaf exist. A server certificate belongs to the
// clustermesh-apiserver of one cluster. A remote certificate is what a cluster
// presents to the apiservers of other clusters. A local certificate is what the
// agents of a cluster present to their own apiserver. The kind of a client
// certificate is read from its common name ("remote", "remote-<cluster>",
// "local-<cluster>"), which is how Cilium names its etcd users, so certificates
// of Cilium's own tools work too.
//
// Everything here is TLS 1.3 with verification in both directions. The package
// uses the standard library only.
package certs
