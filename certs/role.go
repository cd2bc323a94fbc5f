package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Kind says what a certificate is for.
type Kind string

// The kinds of certificate. CA and Unknown are only reported by Inspect.
const (
	Server  Kind = "server"
	Remote  Kind = "remote"
	Local   Kind = "local"
	CA      Kind = "ca"
	Unknown Kind = "unknown"
)

// Role is what the bearer of a client certificate may be taken for. Kind is
// Remote or Local. Cluster is empty only for the plain common name "remote",
// which Cilium uses when all clusters share one client certificate.
type Role struct {
	Kind    Kind   `json:"kind"`
	Cluster string `json:"cluster,omitempty"`
}

// CommonName returns the common name that ParseRole reads as r.
func (r Role) CommonName() string {
	if r.Cluster == "" {
		return string(r.Kind)
	}
	return string(r.Kind) + "-" + r.Cluster
}

// ErrNoRole is wrapped by ParseRole and PeerRole when a common name is none of
// "remote", "remote-<cluster>" and "local-<cluster>".
var ErrNoRole = errors.New("common name is no role")

// ParseRole reads the role out of a client certificate's common name. The name
// must match exactly: no case folding, no white space, a valid cluster name.
func ParseRole(cn string) (Role, error) {
	if cn == string(Remote) {
		return Role{Kind: Remote}, nil
	}
	kind, cluster, _ := strings.Cut(cn, "-")
	if (kind != string(Remote) && kind != string(Local)) || CheckCluster(cluster) != nil {
		return Role{}, fmt.Errorf("read role from common name %q: %w; it must be remote, remote-<cluster> or local-<cluster>", cn, ErrNoRole)
	}
	return Role{Kind: Kind(kind), Cluster: cluster}, nil
}

// PeerRole returns the role of the client at the other end of an accepted
// connection. The connection must come from a ServerTLS configuration, which
// has verified the chain.
func PeerRole(cs tls.ConnectionState) (Role, error) {
	if len(cs.PeerCertificates) == 0 {
		return Role{}, fmt.Errorf("read role of peer: no client certificate: %w", ErrNoRole)
	}
	return ParseRole(cs.PeerCertificates[0].Subject.CommonName)
}

// clusterName is the rule that Cilium enforces for cluster names, together with
// the length limit of maxClusterName.
var clusterName = regexp.MustCompile(`^([a-z0-9][-a-z0-9]*)?[a-z0-9]$`)

const maxClusterName = 32

// CheckCluster returns why name cannot be the name of a cluster, or nil.
func CheckCluster(name string) error {
	if len(name) <= maxClusterName && clusterName.MatchString(name) {
		return nil
	}
	return fmt.Errorf("cluster name %q is not valid: use 1 to %d lower-case letters, digits and '-', beginning and ending with a letter or digit", name, maxClusterName)
}
