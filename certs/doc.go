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
// A CA directory holds, besides the leaves that were issued in it:
//
//	ca.crt         every CA that peers must believe; two during a rotation
//	ca.key         the key of the one of them that issues
//	ca.crl         what they have taken back (RFC 5280), one list per CA; optional
//	issued.json    what was issued and is valid: names, serial numbers, ends
//	ca-next.*      the CA that will issue, between PrepareCA and ActivateCA
//	ca-old.*       the CA that issued before, between ActivateCA and RetireCA
//
// Every file is replaced in one step, writers of a directory take turns, and an
// operation that was interrupted anywhere is finished by calling it again.
//
// Everything here is TLS 1.3 with verification in both directions. The package
// uses the standard library only.
package certs
