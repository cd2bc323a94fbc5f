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
// # What it leaves
//
// On each side, [Home.Install] puts in place what running processes follow: in
// the agents' clusters directory the cluster file and the certificates that it
// names, in the apiserver's directory of peers the file of the new peer. That
// file trusts the own CA (ca: own), which signed the peer's certificate, for
// exactly the name remote-<cluster>. It holds no copy of that CA: the apiserver
// asks its --tls-client-ca, so that a CA can be replaced without these files.
// [Leave] takes it all away.
//
// # Being cut off
//
// What a side must remember lies in the directory join below its CA directory:
// invitations, those that were used, the keys of exchanges under way, and one
// file per peer. Every file is replaced in one step, in an order in which nothing
// half is visible, and each exchange has an id: a command that failed or was
// killed is given again, finds how far it came, and goes on. The side that joins
// is a peer first, the other when it has the confirmation, which may arrive until
// a week after the end of the invitation or the request. A peer that joins again
// is what it was until then.
//
// # Who is who
//
// Whoever is at the other end says himself what he is called. So the names and
// ids of peers are refused to all others, on both sides, whatever is asked for,
// unless the own side names the one cluster that may take its own former place.
package join
