// Package apiserver publishes what a cluster says to the mesh: it reads the
// cluster's objects from a source, turns them into records, and keeps an
// embedded, read-only etcd equal to them.
//
// The store is derived data: when it fails it is rebuilt with a new life,
// without the source having to say anything again. What must outlive it, the
// numbers of identities, is in a journal beside it.
package apiserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
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

	// Of the sources exactly one is used: Manifests, else Kubeconfig, else
	// InCluster.
	Manifests  string // --manifests: a directory of Kubernetes manifests
	Kubeconfig string // --kubeconfig: the file that names an API server
	InCluster  bool   // the process runs in a pod with a service account

	DataDir string            // --data-dir: where the store and the identities' journal live
	Listen  string            // --listen: the gateway's address, host:port
	TLS     certs.ServerFiles // --tls-cert, --tls-key, --tls-client-ca
	HTTP    string            // --http: address of /metrics, /healthz and /readyz; "" for none

	Version string       // shown in metrics
	Log     *slog.Logger // nil discards

	// OnReady, if set, is called once, when everything was published for the
	// first time, with the addresses that were bound.
	OnReady func(Addresses)
}

// Addresses are what an apiserver listens on. HTTP is nil without one.
type Addresses struct{ Gateway, HTTP net.Addr }

// Validate joins everything that is wrong with the configuration. It does no
// I/O: files are looked at by Run.
func (c Config) Validate() error {
	return errors.Join(
		flagError("--cluster-name", c.ClusterName, schema.ValidateClusterName(c.ClusterName)),
		c.validateID(), c.validateSource(),
		needed("--data-dir", c.DataDir, "name a directory that this process may write"),
		address("--listen", c.Listen),
		needed("--tls-cert", c.TLS.Cert, "name the PEM file of the server's certificate"),
		needed("--tls-key", c.TLS.Key, "name the PEM file of the server's private key"),
		needed("--tls-client-ca", c.TLS.ClientCA, "name the PEM file of the CAs that readers' certificates come from"),
		c.validateHTTP(),
	)
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

func (c Config) validateHTTP() error {
	if c.HTTP == "" {
		return nil
	}
	return address("--http", c.HTTP)
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

func (c Config) clusterConfig() schema.ClusterConfig {
	return schema.ClusterConfig{ID: c.ClusterID, Capabilities: schema.Capabilities{
		SyncedCanaries: true, MaxConnectedClusters: c.MaxConnectedClusters,
	}}
}

// kinds are the kinds of records that are published, each by its publisher.
func kinds() []schema.Kind {
	return []schema.Kind{schema.KindService, schema.KindNode, schema.KindIdentity, schema.KindIP, schema.KindLocalService}
}
