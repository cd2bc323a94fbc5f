// Package apiserver publishes what a cluster says to the mesh: it reads the
// cluster's objects from a source, turns them into records, and keeps an
// embedded, read-only etcd equal to them.
//
// The store is derived data: when it fails it is rebuilt with a new life,
// without the source having to say anything again. What must outlive it, the
// numbers of identities, is in a journal beside it.
package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/source"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/clustermesh/clustermesh/kvstore/server"
)

// Config describes an apiserver. Errors call the fields by the names of the
// flags that set them.
type Config struct {
	ClusterName          string // --cluster-name: this cluster's name in the mesh
	ClusterID            uint32 // --cluster-id: its id, unique in the mesh
	MaxConnectedClusters uint32 // --max-connected-clusters: 255 or 511, equal in all clusters
	// DefaultGlobalNamespace (--default-global-namespace) says whether a
	// namespace that does not say so itself takes part in the mesh.
	DefaultGlobalNamespace bool

	// IdentitySource (--identity-source) says where identities, pod addresses and
	// nodes come from: "own" makes them of pods and nodes, "cilium" takes
	// Cilium's, "auto" or "" takes Cilium's where the cluster has them.
	IdentitySource string
	// CiliumEndpointSlices (--enable-cilium-endpoint-slice) reads Cilium's
	// endpoints from its slices.
	CiliumEndpointSlices bool
	// EndpointSlices (--endpoint-slices-export-mode) says in which form backends
	// are exported: one of schema's modes, or "" for services only.
	EndpointSlices string
	// MCSAPI (--mcs-api) says what is announced of the Multi-Cluster Services
	// API: "true" exports ServiceExports, "false" has none, "absent" knows nothing
	// of them, "auto" or "" is true where the cluster has them and else false.
	MCSAPI string

	// Of the sources exactly one is used: Manifests, else Kubeconfig, else
	// InCluster.
	Manifests  string // --manifests: a directory of Kubernetes manifests
	Kubeconfig string // --kubeconfig: the file that names an API server
	InCluster  bool   // the process runs in a pod with a service account

	DataDir string // --data-dir: where the store and the identities' journal live
	// QuotaBytes (--quota-backend-bytes) is the size of the store's database file at
	// which the store ends and is rebuilt; 0 is the store's default.
	QuotaBytes int64
	Listen     string            // --listen: the gateway's address, host:port
	TLS        certs.ServerFiles // --tls-cert, --tls-key, --tls-client-ca, --tls-crl
	TLSDir     string            // --tls-dir: holds tls.crt, tls.key and ca.crt, for those of TLS that are ""
	// CADir (--ca-dir) is a directory of a CA, with its key, that holds the server's
	// certificate, which is then renewed at half of its life. What of TLS is "" is
	// looked for there: server-<ClusterName>.crt and .key, ca.crt, ca.crl. Without
	// it somebody else renews the files, and changes are picked up.
	CADir string
	// Peers (--peers) is a directory with one file per peer: its own CAs, the name
	// its certificate carries, and what it may read. Without one, every cluster
	// whose certificate comes from the CAs of TLS may read all that is exported.
	Peers string
	HTTP  string // --http: address of /metrics, /healthz and /readyz; "" for none
	// APISocket (--api-socket) is the unix socket of the local API; "" is
	// apiserver.sock in DataDir.
	APISocket string

	// CiliumCompat (--cilium-compat) serves what tools expect of Cilium's own
	// clustermesh-apiserver: its health check at HealthListen (--health-listen),
	// and metrics under its names beside ours.
	CiliumCompat bool
	HealthListen string

	// Events (--events) tells owners of services what became of their export, as
	// Kubernetes Events. NobodyImportsAfter (--nobody-imports-after) is how long no
	// other cluster is connected before they are told that; 0 is never.
	Events             bool
	NobodyImportsAfter time.Duration

	Version, Revision string       // shown in metrics; Revision is the commit
	Log               *slog.Logger // nil discards

	// OnReady, if set, is called once, when everything was published for the
	// first time, with the addresses that were bound.
	OnReady func(Addresses)
}

// Addresses are what an apiserver listens on. HTTP and Health are nil without
// one.
type Addresses struct{ Gateway, HTTP, Health net.Addr }

// Validate joins everything that is wrong with the configuration. It does no
// I/O: files are looked at by Run.
func (c Config) Validate() error {
	tls := c.tlsFiles()
	return errors.Join(
		flagError("--cluster-name", c.ClusterName, schema.ValidateClusterName(c.ClusterName)),
		c.validateID(), c.validateSource(),
		needed("--data-dir", c.DataDir, "name a directory that this process may write"), c.validateQuota(),
		address("--listen", c.Listen),
		needed("--tls-cert", tls.Cert, "name the PEM file of the server's certificate"),
		needed("--tls-key", tls.Key, "name the PEM file of the server's private key"),
		needed("--tls-client-ca", tls.ClientCA, "name the PEM file of the CAs that readers' certificates come from"),
		c.validateCADir(), c.validateSocket(),
		optionalAddress("--http", c.HTTP, true), optionalAddress("--health-listen", c.HealthListen, c.CiliumCompat),
		c.validateEvents(),
		oneOf("--identity-source", c.IdentitySource, "", "auto", "own", "cilium"),
		oneOf("--mcs-api", c.MCSAPI, "", "auto", "true", "false", "absent"),
		oneOf("--endpoint-slices-export-mode", c.EndpointSlices, "", schema.ModeServicesAndEndpointSlices, schema.ModeEndpointSlicesOnly),
	)
}

func (c Config) validateQuota() error {
	if c.QuotaBytes != 0 && c.QuotaBytes < server.MinQuotaBytes {
		return fmt.Errorf("--quota-backend-bytes %d: less than %d, which the store needs; write more, or 0 for the default of %d", c.QuotaBytes, server.MinQuotaBytes, server.DefaultQuotaBytes)
	}
	return nil
}

// maxSocketPath is the longest path that a unix socket may have.
const maxSocketPath = 107

func (c Config) validateSocket() error {
	if len(c.APISocket) > maxSocketPath {
		return fmt.Errorf("--api-socket %q: longer than the %d bytes a unix socket path may have; choose a shorter path", c.APISocket, maxSocketPath)
	}
	return nil
}

// apiSocket is the path of the socket, or "" if the one in the data directory
// would be too long.
func (c Config) apiSocket() string {
	path := cmp.Or(c.APISocket, filepath.Join(c.DataDir, "apiserver.sock"))
	if len(path) > maxSocketPath {
		return ""
	}
	return path
}

// tlsFiles are the files of the server, those of the directory included.
func (c Config) tlsFiles() certs.ServerFiles {
	files := c.TLS
	if c.TLSDir != "" {
		files.Cert = cmp.Or(files.Cert, filepath.Join(c.TLSDir, "tls.crt"))
		files.Key = cmp.Or(files.Key, filepath.Join(c.TLSDir, "tls.key"))
		files.ClientCA = cmp.Or(files.ClientCA, filepath.Join(c.TLSDir, "ca.crt"))
	}
	if c.CADir != "" {
		own := filepath.Join(c.CADir, "server-"+c.ClusterName)
		files.Cert, files.Key = cmp.Or(files.Cert, own+".crt"), cmp.Or(files.Key, own+".key")
		files.ClientCA = cmp.Or(files.ClientCA, filepath.Join(c.CADir, "ca.crt"))
		files.CRL = cmp.Or(files.CRL, filepath.Join(c.CADir, caCRL))
	}
	return files
}

// caCRL is the revocation list of a CA directory.
const caCRL = "ca.crl"

// validateCADir checks that what is renewed in the directory is what is used.
func (c Config) validateCADir() error {
	if c.CADir == "" {
		return nil
	}
	files := c.tlsFiles()
	name, dir := strings.TrimSuffix(files.Cert, ".crt"), filepath.Clean(c.CADir)
	if filepath.Dir(files.Cert) != dir || files.Cert != name+".crt" || files.Key != name+".key" {
		return fmt.Errorf("--ca-dir %q: the certificate %q with the key %q is not one of its NAME.crt and NAME.key, so it could not be renewed; leave out --tls-cert, --tls-key and --tls-dir, or --ca-dir", c.CADir, files.Cert, files.Key)
	}
	return nil
}

// validateID checks the limit first: the range of ids depends on it.
func (c Config) validateID() error {
	if err := schema.ValidateClusterID(1, c.MaxConnectedClusters); err != nil {
		return flagError("--max-connected-clusters", fmt.Sprint(c.MaxConnectedClusters), err)
	}
	return flagError("--cluster-id", fmt.Sprint(c.ClusterID), schema.ValidateClusterID(c.ClusterID, c.MaxConnectedClusters))
}

func (c Config) validateSource() error {
	if c.Manifests != "" && c.Kubeconfig != "" {
		return fmt.Errorf("--manifests %q: --kubeconfig %q is set as well, and only one source is possible; remove one", c.Manifests, c.Kubeconfig)
	}
	if c.Manifests == "" && c.Kubeconfig == "" && !c.InCluster {
		return errors.New(`--kubeconfig "": there is no source, and this is no pod with a service account; set --kubeconfig or --manifests`)
	}
	return nil
}

func (c Config) validateEvents() error {
	if d := c.NobodyImportsAfter; d < 0 || d%time.Second != 0 {
		return fmt.Errorf("--nobody-imports-after %s: not a number of seconds of 0 or more; write a duration such as 10m", d)
	}
	return nil
}

// optionalAddress checks an address that is used, if it is given.
func optionalAddress(flag, value string, used bool) error {
	if value == "" || !used {
		return nil
	}
	return address(flag, value)
}

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	var quoted []string
	for _, a := range allowed {
		quoted = append(quoted, strconv.Quote(a))
	}
	return fmt.Errorf("%s %q: not known; use one of %s", flag, value, strings.Join(quoted, ", "))
}

func flagError(flag, value string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %s", flag, value, reasonOf(err))
}

// reasonOf leaves out field and value of a schema error, since the flag names
// them.
func reasonOf(err error) string {
	var e *schema.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return err.Error()
}

func needed(flag, value, remedy string) error {
	if value != "" {
		return nil
	}
	return fmt.Errorf(`%s "": not set; %s`, flag, remedy)
}

func address(flag, value string) error {
	if _, _, err := net.SplitHostPort(value); err != nil {
		return fmt.Errorf("%s %q: not an address; write host:port, such as 127.0.0.1:2379", flag, value)
	}
	return nil
}

func (c Config) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

// wants says which kinds the source reads.
func (c Config) wants() source.Wants {
	w := source.Wants{CiliumSlices: c.CiliumEndpointSlices}
	switch c.IdentitySource {
	case "own":
		w.Cilium = source.No
	case "cilium":
		w.Cilium = source.Yes
	}
	switch c.MCSAPI {
	case "true":
		w.ServiceExports = source.Yes
	case "false", "absent":
		w.ServiceExports = source.No
	}
	return w
}

// export is the exporter's configuration, given what the source reads.
func (c Config) export(r source.Reads) export.Config {
	return export.Config{
		Cluster: c.ClusterName, ClusterID: c.ClusterID, MaxClusters: c.MaxConnectedClusters,
		DefaultGlobalNamespace: c.DefaultGlobalNamespace, EndpointSlices: c.EndpointSlices,
		ServiceExports: r.ServiceExports != "", CiliumIdentities: r.Cilium,
	}
}

// clusterConfig is the cluster's announcement, given what the source reads.
func (c Config) clusterConfig(r source.Reads) schema.ClusterConfig {
	capabilities := schema.Capabilities{
		SyncedCanaries: true, MaxConnectedClusters: c.MaxConnectedClusters, EndpointSlicesExportMode: c.EndpointSlices,
	}
	if exports := r.ServiceExports != ""; c.MCSAPI != "absent" {
		capabilities.ServiceExportsEnabled = &exports
	}
	return schema.ClusterConfig{ID: c.ClusterID, Capabilities: capabilities}
}

// kinds are the kinds of records that are published, each by its publisher:
// those that the announcement names, whatever the source reads, and our own.
func (c Config) kinds() []schema.Kind {
	return append(schema.PublishedKinds(c.clusterConfig(source.Reads{})), schema.KindLocalService)
}
