package join

import (
	"fmt"
	"path"
	"strings"

	"github.com/clustermesh/clustermesh/certs"
)

// Peer is what one side has of the other when they have joined: all that its
// agents need to connect there, and all that its apiserver needs to know it by.
type Peer struct {
	Cluster   string
	ID        uint32
	Endpoints []string // none: the peer is not connected to
	CA        []byte   // PEM, for verifying the peer's server
	Cert, Key []byte   // PEM, what the own side presents there
	// Reads says that the own CA issued the peer a certificate, with which it
	// may read what View says. Trust is the bundle of the own CA, in PEM, by which
	// files with a copy of it are known.
	Reads bool
	View  View
	Trust []byte
	// Again says that View is what the peer could read before, for want of another
	// choice; then its file may say it closer.
	Again bool
	// Revoked are the SHA-256 sums, in hex, of certificates that the peer had
	// before and that were taken back.
	Revoked []string
	// Others are the other peers whose certificates the own CA issued.
	Others []Known
	// Replace says that the peer may take the place of one of the same name.
	Replace bool
}

func (p Peer) known() Known {
	return Known{Cluster: p.Cluster, ID: p.ID, Reads: p.Reads, View: p.View, Revoked: p.Revoked}
}

// names are the files of a cluster, named as in Cilium's clustermesh secret.
func names(cluster string) (ca, cert, key string) {
	base := cluster + ".etcd-client"
	return base + "-ca.crt", base + ".crt", base + ".key"
}

// Files returns the cluster file, which is named like the cluster, and the files
// that it names. These it expects in the directory mount, or beside itself if
// that is empty. A peer that is not connected to has none.
func (p Peer) Files(mount string) map[string][]byte {
	if len(p.Endpoints) == 0 {
		return nil
	}
	ca, cert, key := names(p.Cluster)
	var b strings.Builder
	b.WriteString("endpoints:\n")
	for _, e := range p.Endpoints {
		fmt.Fprintf(&b, "- %s\n", e)
	}
	fmt.Fprintf(&b, "trusted-ca-file: %s\ncert-file: %s\nkey-file: %s\n", path.Join(mount, ca), path.Join(mount, cert), path.Join(mount, key))
	return map[string][]byte{p.Cluster: []byte(b.String()), ca: p.CA, cert: p.Cert, key: p.Key}
}

// peerFile is the name of a peer's file in the directory of peers.
func peerFile(cluster string) string { return cluster + ".yaml" }

// ownCA names our own CA, whatever that is by then: a copy would outlive it.
const ownCA = "ca: own\n"

// readerFile is the content of that file. Its certificates are issued here, so
// its CA is our own. Names tell the peers of that CA apart. more are the members
// that joining does not decide: those of [plain] or [kept]. ca is [ownCA], or its
// text where that is there already.
func readerFile(k Known, more, ca string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# Cluster %s with id %d; it joined with clustermesh join.\n", k.Cluster, k.ID)
	fmt.Fprintf(&b, "identity:\n  common-name: %s\n", certs.Role{Kind: certs.Remote, Cluster: k.Cluster}.CommonName())
	b.WriteString(more)
	b.WriteString(ca)
	return []byte(b.String())
}
