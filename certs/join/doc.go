// Package join makes two clusters peers of each other without a key or a
// kubeconfig changing hands.
//
// Three messages do it, each of them public: a [Request] (from the cluster that
// joins: its CA, its endpoints, a request for a certificate), an [Approval] (the
// certificate, and the same of the other cluster) and a [Confirmation] (the
// other cluster's certificate). Each side makes its own key and keeps it; each
// signs, for the other, a certificate for remote-<cluster> and nothing else.
//
// They travel as files that people carry and compare (request, approve, accept),
// or over one connection: the side that is joined makes an invitation token that
// works once, and serves it ([Acceptor]); the side that joins dials
// what the token says, over TLS 1.3 pinned to the CA in the token ([Join]).
//
// What a side must remember lies in the directory join below its CA directory:
// invitations, those that were used, and the keys of exchanges under way.
package join
