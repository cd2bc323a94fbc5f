package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// token authenticates the tests; the API server listens on the lab's own
// loopback only.
const token = "end-to-end"

// Config says which control plane to run.
type Config struct {
	Name         string
	Binary       string   // the multi-call binary of e2e/kube
	ServiceCIDRs []string // one per family, the primary one first
	FirstPort    int      // of three on the lab's loopback
}

// Cluster is a running control plane and a client for it.
type Cluster struct {
	Name       string
	Kubeconfig string // path of an administrator's kubeconfig
	Client     kubernetes.Interface

	dir       string
	rest      *rest.Config
	config    Config
	lab       *lab.Lab
	processes []*lab.Process
}

// Start starts a control plane and returns when its API answers. It ends with
// the lab.
func Start(ctx context.Context, l *lab.Lab, c Config) (*Cluster, error) {
	k := &Cluster{Name: c.Name, config: c, lab: l, dir: filepath.Join(l.Dir, "kube-"+c.Name)}
	if err := k.start(ctx); err != nil {
		return nil, fmt.Errorf("start control plane %s: %w", c.Name, err)
	}
	return k, nil
}

func (k *Cluster) start(ctx context.Context) error {
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return err
	}
	port := k.config.FirstPort
	if err := errors.Join(k.writeKey(), k.writeTokens()); err != nil {
		return err
	}
	if err := k.startEtcd(port, port+1); err != nil {
		return err
	}
	if err := k.startAPIServer(port, port+2); err != nil {
		return err
	}
	if err := k.connect(ctx, port+2); err != nil {
		return err
	}
	return k.startControllers()
}

func (k *Cluster) run(program string, args ...string) error {
	p, err := k.lab.Start(lab.Spec{
		Name: k.Name + "-" + program,
		Path: k.config.Binary,
		Args: append([]string{program}, args...),
	})
	k.processes = append(k.processes, p)
	return err
}

// Freeze stops all processes of the control plane where they are: connections
// stay open and nothing answers.
func (k *Cluster) Freeze() error { return k.signal(syscall.SIGSTOP) }

// Thaw lets a frozen control plane go on.
func (k *Cluster) Thaw() error { return k.signal(syscall.SIGCONT) }

func (k *Cluster) signal(s syscall.Signal) error {
	var errs []error
	for _, p := range k.processes {
		errs = append(errs, syscall.Kill(p.PID(), s))
	}
	return errors.Join(errs...)
}

func (k *Cluster) startEtcd(client, peer int) error {
	clientURL, peerURL := loopback("http", client), loopback("http", peer)
	return k.run("etcd",
		"--data-dir="+filepath.Join(k.dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+clientURL, "--advertise-client-urls="+clientURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL,
		"--initial-cluster=default="+peerURL)
}

func (k *Cluster) startAPIServer(etcd, port int) error {
	key := k.keyFile()
	return k.run("kube-apiserver",
		"--etcd-servers="+loopback("http", etcd),
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		"--advertise-address="+advertised,
		"--cert-dir="+k.dir,
		"--service-cluster-ip-range="+strings.Join(k.config.ServiceCIDRs, ","),
		"--endpoint-reconciler-type=none", "--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+key, "--service-account-key-file="+key,
		"--token-auth-file="+k.tokenFile(), "--authorization-mode=RBAC",
		"--enable-priority-and-fairness=false")
}

// advertised only has to be a non-loopback address; nothing connects to it
// because no endpoint reconciler runs.
const advertised = "192.0.2.1"

func (k *Cluster) startControllers() error {
	return k.run("kube-controller-manager",
		"--kubeconfig="+k.Kubeconfig, "--leader-elect=false",
		"--bind-address=127.0.0.1", "--secure-port=0",
		"--controllers=endpointslice-controller,serviceaccount-controller,namespace-controller,"+
			"garbage-collector-controller,clusterrole-aggregation-controller",
		"--service-account-private-key-file="+k.keyFile(),
		"--kube-api-qps=500", "--kube-api-burst=1000")
}

// connect waits for the API server and makes the client and its kubeconfig.
// The server's self-signed certificate is the authority to trust.
func (k *Cluster) connect(ctx context.Context, port int) error {
	k.Kubeconfig = filepath.Join(k.dir, "kubeconfig")
	k.rest = &rest.Config{
		Host:            loopback("https", port),
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(k.dir, "apiserver.crt")},
		QPS:             -1, // no client-side rate limit
	}
	if err := k.awaitReady(ctx); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(k.rest)
	if err != nil {
		return err
	}
	k.Client = client
	return k.writeKubeconfig()
}

func (k *Cluster) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	return poll(ctx, 100*time.Millisecond, func() error {
		transport, err := rest.TransportFor(k.rest) // fails until the certificate exists
		if err != nil {
			return err
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.rest.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz answers %s", response.Status)
		}
		return nil
	})
}

func (k *Cluster) writeKubeconfig() error {
	config := clientcmdapi.NewConfig()
	config.Clusters[k.Name] = &clientcmdapi.Cluster{
		Server:               k.rest.Host,
		CertificateAuthority: k.rest.CAFile,
	}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[k.Name] = &clientcmdapi.Context{Cluster: k.Name, AuthInfo: "admin"}
	config.CurrentContext = k.Name
	return clientcmd.WriteToFile(*config, k.Kubeconfig)
}

func (k *Cluster) keyFile() string   { return filepath.Join(k.dir, "service-account.key") }
func (k *Cluster) tokenFile() string { return filepath.Join(k.dir, "tokens.csv") }

// writeKey writes the service account key in the SEC1 form that the API server
// insists on.
func (k *Cluster) writeKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return os.WriteFile(k.keyFile(), text, 0o600)
}

func (k *Cluster) writeTokens() error {
	line := token + `,admin,admin,"system:masters"` + "\n"
	return os.WriteFile(k.tokenFile(), []byte(line), 0o600)
}

func loopback(scheme string, port int) string {
	return fmt.Sprintf("%s://127.0.0.1:%d", scheme, port)
}

// poll repeats check until it succeeds or ctx ends; it then returns the last
// error of check.
func poll(ctx context.Context, every time.Duration, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(every):
		}
	}
}
