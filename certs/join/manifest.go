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
	Mount     string // where pods will see the cluster file; its files are beside it when empty
}

// Secrets are manifests with the files that [Home.Install] would write, in YAML:
// one Secret with the cluster file and what it names, as in Cilium's clustermesh
// secret, and one with the files of all peers that may read here, which replaces
// its former self. The first holds a private key.
func (p Peer) Secrets(o SecretOptions) []byte {
	var out []byte
	if files := p.Files(o.Mount); len(files) > 0 {
		out = secret(or(o.Name, "clustermesh-"+p.Cluster), o.Namespace, files)
	}
	if p.Reads {
		out = append(out, readersSecret(append([]Known{p.known()}, p.Others...), p.Trust, o)...)
	}
	return out
}

// PeersSecret is the manifest of the Secret with the files of all peers that may
// read here, as it is now.
func (s Site) PeersSecret(o SecretOptions) ([]byte, error) {
	list, err := s.Peers()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(k Known) bool { return !k.Reads })
	bundle, _, err := certs.Bundle(s.Dir)
	return readersSecret(list, bundle, o), err
}

// readersSecret is the manifest of the Secret with the files of all peers that
// may read here.
func readersSecret(all []Known, trust []byte, o SecretOptions) []byte {
	files := map[string][]byte{}
	for _, k := range all {
		var shares []string
		for _, other := range all {
			if other.Cluster != k.Cluster {
				shares = append(shares, other.Cluster)
			}
		}
		slices.Sort(shares)
		files[peerFile(k.Cluster)] = readerFile(k, trust, shares, plain(k))
	}
	return secret(or(o.PeersName, "clustermesh-peers"), o.Namespace, files)
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
