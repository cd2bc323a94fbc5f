package join

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// Peer is what one side has of the other when they have joined: all that its
// agents need to connect there.
type Peer struct {
	Cluster   string
	Endpoints []string // none: the peer is not connected to
	CA        []byte   // PEM, for verifying the peer's server
	Cert, Key []byte   // PEM, what the own side presents there
	// Replace says that the peer may take the place of one of the same name.
	Replace bool
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

// Write puts the files into a clusters directory, the cluster file last, so that
// an agent that follows the directory finds what it names. A cluster that is
// there already is an error unless the peer may replace it.
func (p Peer) Write(dir string) error {
	if !p.Replace && known(dir, p.Cluster) {
		return refuse(NameTaken, "%s has a cluster %q already; allow it with --replace, or end that first: clustermesh disconnect %s", dir, p.Cluster, p.Cluster)
	}
	if err := disk.Ensure(dir); err != nil {
		return err
	}
	files := p.Files("")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if name == p.Cluster {
			continue
		}
		if err := disk.Replace(filepath.Join(dir, name), modeOf(name), files[name]); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return nil
	}
	return disk.Replace(filepath.Join(dir, p.Cluster), disk.CertMode, files[p.Cluster])
}

func modeOf(name string) fs.FileMode {
	if strings.HasSuffix(name, ".key") {
		return disk.KeyMode
	}
	return disk.CertMode
}

// SecretOptions describe a Kubernetes Secret.
type SecretOptions struct {
	Name      string // clustermesh-<cluster> when empty
	Namespace string // left out when empty
	Mount     string // where pods will see the files; beside each other when empty
}

// Secret is the manifest of a Kubernetes Secret with the peer's files, one YAML
// document. It holds a private key.
func (p Peer) Secret(o SecretOptions) []byte {
	if o.Name == "" {
		o.Name = "clustermesh-" + p.Cluster
	}
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n", o.Name)
	if o.Namespace != "" {
		fmt.Fprintf(&b, "  namespace: %s\n", o.Namespace)
	}
	b.WriteString("type: Opaque\ndata:\n")
	files := p.Files(o.Mount)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "  %s: %s\n", name, base64.StdEncoding.EncodeToString(files[name]))
	}
	return []byte(b.String())
}

func known(dir, cluster string) bool {
	_, err := os.Stat(filepath.Join(dir, cluster))
	return err == nil
}

// Leave ends the relation with a cluster from this side alone; the other need
// not be there. It removes the cluster's files from the clusters directory, the
// cluster file first, and revokes every certificate that the CA in dir issued to
// the cluster. Either directory may be empty, and is then left out.
func Leave(dir, clusters, cluster string) error {
	if err := certs.CheckCluster(cluster); err != nil {
		return fmt.Errorf("leave cluster: %w", err)
	}
	var errs []error
	if clusters != "" {
		if !known(clusters, cluster) {
			errs = append(errs, fmt.Errorf("%s holds no cluster %q", clusters, cluster))
		}
		ca, cert, key := names(cluster)
		for _, name := range []string{cluster, ca, cert, key} {
			errs = append(errs, disk.Remove(filepath.Join(clusters, name)))
		}
	}
	if dir != "" {
		_, err := certs.Revoke(dir, certs.RevokeRequest{Names: []string{string(certs.Remote) + "-" + cluster}})
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("leave cluster: %w", err)
	}
	return nil
}
