// Command clustermesh-apiserver publishes a cluster's global services, nodes
// and identities to the other clusters of a mesh.
//
// Exit codes: 0 ended when told to, 1 failed, 2 used wrongly.
package main

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/clustermesh/clustermesh/apiserver"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func main() {
	os.Exit(cli.Main(newCommand(os.Stderr), os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags of the apiserver.
type options struct {
	apiserver.Config
	log cli.LogFlags
}

func newCommand(stderr io.Writer) *cobra.Command {
	o := &options{}
	c := cli.Prepare(&cobra.Command{
		Use:   "clustermesh-apiserver",
		Short: "Publish this cluster's global services to the other clusters of the mesh",
		Long: `clustermesh-apiserver reads a cluster's Services, EndpointSlices, Namespaces, Nodes
and Pods, from its Kubernetes API server or from a directory of manifests, and
publishes them through an etcd that others can only read, over mutual TLS, in
Cilium ClusterMesh's format.

Without --kubeconfig and --manifests it uses the service account of the pod it
runs in, which must be able to list and watch what is read.

Where Cilium is the cluster's network (CiliumNode, CiliumIdentity, and
CiliumEndpoint or CiliumEndpointSlice are served) its identities, pod addresses
and nodes are exported as they are; elsewhere they are made of Pods and Nodes.
ServiceExports of the Multi-Cluster Services API are exported where they are
served. Both are looked up once, at the start: restart the process after such
kinds were installed or removed. What was chosen is in the log, in /readyz and
in the metric clustermesh_identity_source.

With --cilium-compat it stands in for Cilium's own clustermesh-apiserver (v1.20):
the same client certificates (remote, remote-<cluster>, local-<cluster>) may read
the same keys, --tls-dir takes a mounted clustermesh-apiserver-server-cert
secret, --health-listen answers /readyz as Cilium's health port does, and
/metrics has the names cilium_clustermesh_apiserver_bootstrap_seconds, _version,
_kvstore_sync_queue_size, _kvstore_sync_errors_total and
_kvstore_initial_sync_completed besides our own.

Certificates are read again whenever their files change, whoever replaces them
(cert-manager, a mounted Secret, clustermesh certs renew), without a restart.
With --ca-dir the server renews its own. Connections are closed within seconds
when their certificate has ended, is revoked (--tls-crl, or the peer's file), or
when its CA has been taken out of --tls-client-ca.

Every flag is also an environment variable (--cluster-name is
CLUSTERMESH_CLUSTER_NAME) and a member of the --config file.`,
		Example: `  clustermesh-apiserver --cluster-name east --cluster-id 1 \
    --kubeconfig /etc/kubernetes/admin.conf --data-dir /var/lib/clustermesh \
    --listen 0.0.0.0:2379 --http 127.0.0.1:9962 --tls-cert server.crt \
    --tls-key server.key --tls-client-ca ca.crt
  clustermesh-apiserver --config /etc/clustermesh/apiserver.yaml --log-format json`,
		Version: cli.ThisBuild().String(),
		RunE: func(c *cobra.Command, _ []string) error {
			log, logErr := o.log.Logger(stderr)
			o.Log, o.InCluster = log, apiserver.InCluster()
			o.Version, o.Revision = cli.ThisBuild().Version, cli.ThisBuild().Commit
			if err := errors.Join(logErr, o.Validate()); err != nil {
				return cli.Usage(err)
			}
			return apiserver.Run(c.Context(), o.Config)
		},
	})
	o.addFlags(c.Flags())
	return c
}

func (o *options) addFlags(f *pflag.FlagSet) {
	cli.Group(f, "This cluster", o.addClusterFlags)
	cli.Group(f, "What is exported", o.addExportFlags)
	cli.Group(f, "Served to other clusters and agents", o.addServerFlags)
	cli.Group(f, "Certificates", o.addCertificateFlags)
	cli.Group(f, "Served to operators", o.addOperatorFlags)
	o.log.Add(f)
}

// addClusterFlags adds the flags that say what cluster this is and where its
// objects come from.
func (o *options) addClusterFlags(f *pflag.FlagSet) {
	f.StringVar(&o.ClusterName, "cluster-name", "", "name of this cluster in the mesh (required)")
	f.Uint32Var(&o.ClusterID, "cluster-id", 0, "id of this cluster, unique in the mesh: 1 to --max-connected-clusters (required)")
	f.Uint32Var(&o.MaxConnectedClusters, "max-connected-clusters", 255, "255 or 511, the same in every cluster of the mesh")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "file that names the API server to read; empty in a pod for its own cluster")
	f.StringVar(&o.Manifests, "manifests", "", "directory of Kubernetes manifests to read instead, followed live")
	f.StringVar(&o.DataDir, "data-dir", "", "directory for the store, which is rebuilt at every start, and the journal of identities (required)")
	f.Int64Var(&o.QuotaBytes, "quota-backend-bytes", 0, "size in bytes that the store's database may reach; beyond it is rebuilt. At least 16777216; 0 for 536870912")
}

func (o *options) addExportFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.DefaultGlobalNamespace, "default-global-namespace", true, "whether namespaces without the annotation clustermesh.cilium.io/global take part")
	f.StringVar(&o.EndpointSlices, "endpoint-slices-export-mode", "services-and-endpointslices", `form in which backends are exported: services-and-endpointslices, endpointslices-only (no reader before Cilium 1.20 or with its defaults uses it), or "" for services only`)
	f.StringVar(&o.MCSAPI, "mcs-api", "auto", "export ServiceExports: true, false, auto (where they are served at the start), or absent (announce nothing of them)")
	f.StringVar(&o.IdentitySource, "identity-source", "auto", "where identities come from: own (made of pods), cilium, or auto (Cilium's where its kinds are served at the start)")
	f.BoolVar(&o.CiliumEndpointSlices, "enable-cilium-endpoint-slice", false, "read Cilium's endpoints from CiliumEndpointSlices; without, only where CiliumEndpoints are not served")
	f.BoolVar(&o.Events, "events", true, "write Kubernetes Events about services: exported, withdrawn, what is wrong, nobody imports")
	f.DurationVar(&o.NobodyImportsAfter, "nobody-imports-after", 10*time.Minute, "with --events, how long no other cluster is connected before owners of exported services are told; 0 for never")
}

func (o *options) addServerFlags(f *pflag.FlagSet) {
	f.StringVar(&o.Listen, "listen", "127.0.0.1:2379", "address that other clusters and this cluster's agents read from")
	f.StringVar(&o.Peers, "peers", "", "directory with one YAML file per peer: its CAs, its certificate's name, what it may read; empty to let every certificate from --tls-client-ca read all")
}

// addCertificateFlags adds the flags of which some suffice: files, a directory
// of them, or a CA.
func (o *options) addCertificateFlags(f *pflag.FlagSet) {
	f.StringVar(&o.TLS.Cert, "tls-cert", "", "PEM file of the server's certificate; changes take effect at once (required, or --tls-dir or --ca-dir)")
	f.StringVar(&o.TLS.Key, "tls-key", "", "PEM file of its private key (required like --tls-cert)")
	f.StringVar(&o.TLS.ClientCA, "tls-client-ca", "", "PEM file of the CAs that readers' certificates come from (required like --tls-cert)")
	f.StringVar(&o.TLS.CRL, "tls-crl", "", "PEM file of the revocation lists of --tls-client-ca; what it takes back is refused, and cut off within seconds; empty for none")
	f.StringVar(&o.TLSDir, "tls-dir", "", "directory with tls.crt, tls.key and ca.crt, for those of the three flags that are not given")
	f.StringVar(&o.CADir, "ca-dir", "", "directory of a CA with its key (clustermesh certs init): renew this server's certificate in it at half of its life; the --tls-* flags default to the files there")
}

func (o *options) addOperatorFlags(f *pflag.FlagSet) {
	f.StringVar(&o.HTTP, "http", "127.0.0.1:9962", "address of /metrics, /healthz and /readyz; empty for none")
	f.StringVar(&o.APISocket, "api-socket", "", "unix socket of the local API, for clustermesh status; empty for apiserver.sock in --data-dir")
	f.BoolVar(&o.CiliumCompat, "cilium-compat", false, "also serve the health check and the metrics of Cilium's clustermesh-apiserver")
	f.StringVar(&o.HealthListen, "health-listen", ":9880", "with --cilium-compat, address of the health check; empty for none")
}
