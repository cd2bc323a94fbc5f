package join

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/certs"
)

// SecretOptions describe the Kubernetes Secrets of a peer.
type SecretOptions struct {
	Name      string // of that with the cluster file; clustermesh-<cluster> when empty
	PeersName string // of that with all peers' files; clustermesh-peers when empty
	Namespace string // left out when empty
	// Present are the peers' files that are in place, see [ReadPeers]: what they
	// restrict stays. Without them it is lost.
	Present map[string][]byte
	Mount   string // where pods will see the cluster file; its files are beside it when empty
}

// Secrets are manifests with the files that [Home.Install] would write, in YAML:
// one Secret with the cluster file and what it names, as in Cilium's clustermesh
// secret, and one with the files of all peers that may read here, which replaces
// its former self. The first holds a private key.
func (p Peer) Secrets(o SecretOptions) ([]byte, error) {
	var out []byte
	if files := p.Files(o.Mount); len(files) > 0 {
		if err := o.Check(p.Cluster); err != nil {
			return nil, err
		}
		out = secret(o.nameOf(p.Cluster), o.Namespace, files)
	}
	if !p.Reads {
		return out, nil
	}
	members := map[string]string{}
	var err error
	if members[p.Cluster], err = o.joins(p); err != nil {
		return nil, err
	}
	readers, err := o.readers(append([]Known{p.known()}, p.Others...), p.Trust, members)
	return append(out, readers...), err
}

// reserved are the Secrets and ConfigMaps that the chart, the kustomization and
// the guide use beside those of clusters, and Cilium's own that begin alike.
func reserved() []string {
	return []string{
		"clustermesh-peers", "clustermesh-server-cert", "clustermesh-local-cert", "clustermesh-ca",
		"clustermesh-settings", "clustermesh-own-cluster", "clustermesh-accepts",
		"clustermesh-dashboard-cluster", "clustermesh-dashboard-mesh", "clustermesh-dashboard-node",
		"clustermesh-apiserver-server-cert", "clustermesh-apiserver-local-cert", "clustermesh-apiserver-remote-cert", "clustermesh-apiserver-admin-cert",
	}
}

func (o SecretOptions) nameOf(cluster string) string { return or(o.Name, "clustermesh-"+cluster) }
func (o SecretOptions) peersName() string            { return or(o.PeersName, "clustermesh-peers") }

// Check refuses a cluster whose Secret would take the place of another one, such
// as that of all peers for a cluster named peers.
func (o SecretOptions) Check(cluster string) error {
	name := o.nameOf(cluster)
	if name == o.peersName() || slices.Contains(reserved(), name) {
		return refuse(NameTaken, "cluster %q: its Secret would be %s, which holds something else; choose another with --secret-name, or give the cluster another name", cluster, name)
	}
	return nil
}

// PeersSecret is the manifest of the Secret with the files of all peers that may
// read here, as it is now.
func (s Site) PeersSecret(o SecretOptions) ([]byte, error) {
	list, err := s.Peers()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(k Known) bool { return !k.Reads })
	bundle, gone, err := s.trust()
	if err != nil {
		return nil, err
	}
	return o.readers(revokedToo(list, gone), bundle, map[string]string{})
}

// revokedToo adds to peers which of their certificates were taken back since they
// joined.
func revokedToo(peers []Known, gone map[string][]string) []Known {
	for i, k := range peers {
		all := append(slices.Clone(k.Revoked), gone[k.Cluster]...)
		slices.Sort(all)
		peers[i].Revoked = slices.Compact(all)
	}
	return peers
}

// readers is the manifest of the Secret with the files of all peers that may read
// here. members are those of peers for which they are known already; trust is the
// bundle of the own CA.
func (o SecretOptions) readers(all []Known, trust []byte, members map[string]string) ([]byte, error) {
	cas, err := certs.ParseBundle(trust)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, k := range all {
		more, ok := members[k.Cluster]
		ca := ownCA
		if !ok {
			copied, err := o.copied(k, cas)
			if err != nil {
				return nil, err
			}
			if more, err = o.stays(k, copied); err != nil {
				return nil, err
			}
			if copied {
				ca = caText(trust)
			}
		}
		files[peerFile(k.Cluster)] = readerFile(k, more, ca)
	}
	return secret(o.peersName(), o.Namespace, files), nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func secret(name, namespace string, files map[string][]byte) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n", name)
	if namespace != "" {
		fmt.Fprintf(&b, "  namespace: %s\n", namespace)
	}
	b.WriteString("  labels:\n    app.kubernetes.io/name: clustermesh\n    app.kubernetes.io/part-of: cilium\n")
	b.WriteString("type: Opaque\ndata:\n")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "  %s: %s\n", name, base64.StdEncoding.EncodeToString(files[name]))
	}
	return []byte(b.String())
}
