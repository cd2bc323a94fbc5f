package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// accountDir is where a pod finds the token of its account.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// servedAt is where pods on the node's network reach the pods that are not.
const servedAt = "192.168.50.1"

// podOf is the pod template of a workload, in its namespace.
func podOf(t *testing.T, owner *unstructured.Unstructured) corev1.PodTemplateSpec {
	t.Helper()
	template, _, err := unstructured.NestedMap(owner.Object, "spec", "template")
	must(t, err)
	var pod corev1.PodTemplateSpec
	must(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(template, &pod, true))
	return pod
}

// container is what is made of a container before it starts.
type container struct {
	in     *installation
	pod    corev1.PodTemplateSpec
	spec   corev1.Container
	dir    string
	script strings.Builder
}

// run starts a container as a kubelet and a container runtime do: with its
// volumes, variables, user, capabilities and arguments, on a file system of which
// it can write only what it was given. Its program is that of the image.
func (in *installation) run(t *testing.T, pod corev1.PodTemplateSpec, spec corev1.Container, program string) *lab.Process {
	t.Helper()
	c := &container{in: in, pod: pod, spec: spec, dir: filepath.Join(in.dir, "container-"+spec.Name)}
	must(t, os.MkdirAll(c.dir, 0o711))
	c.line("set -eu")
	c.line("mount --make-rprivate /")
	for _, dir := range []string{"/etc", "/run", "/var/lib", "/usr/local"} {
		c.line("mount -t tmpfs -o mode=0755 tmpfs %s", dir)
	}
	c.line("mkdir /usr/local/bin")
	c.line("cp %s /usr/local/bin/%s", binary(program), program)
	where := lab.Spec{Name: "container-" + spec.Name, Path: "/usr/bin/unshare"}
	address := "127.0.0.1"
	if pod.Spec.HostNetwork {
		where.Node, address = in.node, servedAt
	}
	c.line("echo %s clustermesh-apiserver.clustermesh.svc >/etc/hosts", address)
	for _, m := range spec.VolumeMounts {
		c.bind(c.volume(t, m.Name), m.MountPath, m.ReadOnly)
	}
	env := c.variables(t)
	if pod.Spec.AutomountServiceAccountToken == nil || *pod.Spec.AutomountServiceAccountToken {
		env = append(env, c.account(t)...)
	}
	c.line("for fs in /etc /run /var/lib /usr/local; do mount -o remount,ro $fs; done")
	c.line("mount -o remount,bind,ro /")
	c.line(`exec %s /usr/local/bin/%s "$@"`, c.identity(t), program)
	where.Args, where.Env = append([]string{"--mount", "sh", "-c", c.script.String(), program}, spec.Args...), env
	p, err := in.lab.Start(where)
	must(t, err)
	return p
}

func (c *container) line(format string, args ...any) {
	fmt.Fprintf(&c.script, format+"\n", args...)
}

func (c *container) bind(from, to string, readOnly bool) {
	c.line("mkdir -p %s && mount --bind %s %s", to, from, to)
	if readOnly {
		c.line("mount -o remount,bind,ro %s", to)
	}
}

// user is the user that the container runs as.
func (c *container) user() int64 {
	for _, u := range []*int64{c.spec.SecurityContext.RunAsUser, c.pod.Spec.SecurityContext.RunAsUser} {
		if u != nil {
			return *u
		}
	}
	return 0
}

// identity is the command that takes the container's user and capabilities.
func (c *container) identity(t *testing.T) string {
	t.Helper()
	numbers := map[corev1.Capability]string{"BPF": "39", "NET_ADMIN": "12", "PERFMON": "38", "SYS_ADMIN": "21"}
	bounding := "-all"
	for _, capability := range c.spec.SecurityContext.Capabilities.Add {
		if numbers[capability] == "" {
			t.Fatalf("the number of capability %s is not known", capability)
		}
		bounding += ",+cap_" + numbers[capability]
	}
	id := c.user()
	return fmt.Sprintf("setpriv --no-new-privs --bounding-set %s --inh-caps -all --ambient-caps -all --reuid %d --regid %d --clear-groups", bounding, id, id)
}

// volume makes a volume and returns its directory on the node.
func (c *container) volume(t *testing.T, name string) string {
	t.Helper()
	i := slices.IndexFunc(c.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if i < 0 {
		t.Fatalf("the pod has no volume %s", name)
	}
	v := c.pod.Spec.Volumes[i]
	dir := filepath.Join(c.dir, name)
	switch {
	case v.HostPath != nil:
		return c.hostPath(t, v.HostPath.Path)
	case v.EmptyDir != nil:
		must(t, os.MkdirAll(dir, 0o777))
		must(t, os.Chmod(dir, 0o777))
	case v.Secret != nil:
		c.write(t, dir, c.in.secret(t, v.Secret.SecretName, v.Secret.Optional), *v.Secret.DefaultMode)
	case v.Projected != nil:
		c.write(t, dir, c.in.projected(t, v.Projected.Sources), *v.Projected.DefaultMode)
	default:
		t.Fatalf("volume %s is of a kind that is not known here", name)
	}
	return dir
}

// hostPath are the node's directories, which here are the lab's.
func (c *container) hostPath(t *testing.T, path string) string {
	t.Helper()
	dir := map[string]string{
		"/sys/fs/bpf/clustermesh": filepath.Join(c.in.bpffs, "clustermesh"),
		"/sys/fs/cgroup":          c.in.node.Cgroup,
		"/var/run/clustermesh":    filepath.Join(c.in.dir, "run"),
		"/run/netns":              filepath.Join(c.in.dir, "netns"),
	}[path]
	if dir == "" {
		t.Fatalf("the node has no %s", path)
	}
	must(t, os.MkdirAll(dir, 0o755))
	return dir
}

// write writes a volume's files for the container's group.
func (c *container) write(t *testing.T, dir string, files map[string][]byte, mode int32) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	group := 0
	if g := c.pod.Spec.SecurityContext.FSGroup; g != nil {
		group = int(*g)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, content, 0o600))
		must(t, os.Chown(path, 0, group))
		must(t, os.Chmod(path, fs.FileMode(mode)))
	}
}

func (in *installation) secret(t *testing.T, name string, optional *bool) map[string][]byte {
	t.Helper()
	s, err := in.kube.Client.CoreV1().Secrets(installed).Get(live(t), name, metav1.GetOptions{})
	if err != nil && optional != nil && *optional {
		return nil
	}
	must(t, err)
	return s.Data
}

func (in *installation) configMap(t *testing.T, name string) map[string]string {
	t.Helper()
	m, err := in.kube.Client.CoreV1().ConfigMaps(installed).Get(live(t), name, metav1.GetOptions{})
	must(t, err)
	return m.Data
}

func (in *installation) projected(t *testing.T, sources []corev1.VolumeProjection) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, s := range sources {
		if s.ConfigMap != nil {
			for name, text := range in.configMap(t, s.ConfigMap.Name) {
				out[name] = []byte(text)
			}
			continue
		}
		data := in.secret(t, s.Secret.Name, s.Secret.Optional)
		if len(s.Secret.Items) == 0 {
			maps.Copy(out, data)
		}
		for _, item := range s.Secret.Items {
			out[item.Path] = data[item.Key]
		}
	}
	return out
}

// variables are the container's own.
func (c *container) variables(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, e := range c.spec.Env {
		value := e.Value
		switch from := e.ValueFrom; {
		case from == nil:
		case from.ConfigMapKeyRef != nil:
			value = c.in.configMap(t, from.ConfigMapKeyRef.Name)[from.ConfigMapKeyRef.Key]
		default:
			value = c.in.node.Name
		}
		out = append(out, e.Name+"="+value)
	}
	return out
}

// account gives the container the token of its account, and the variables that
// say where the API server is.
func (c *container) account(t *testing.T) []string {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.in.kube.Kubeconfig)
	must(t, err)
	token, err := c.in.token(live(t), c.pod.Spec.ServiceAccountName)
	must(t, err)
	dir := filepath.Join(c.dir, "account")
	c.write(t, dir, map[string][]byte{"token": []byte(token), "ca.crt": authority(config), "namespace": []byte(installed)}, 0o440)
	c.bind(dir, accountDir, true)
	host, port, _ := strings.Cut(strings.TrimPrefix(config.Host, "https://"), ":")
	return []string{"KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port}
}

func authority(config *rest.Config) []byte { return []byte(readFile(config.CAFile)) }

func (in *installation) token(ctx context.Context, account string) (string, error) {
	r, err := in.kube.Client.CoreV1().ServiceAccounts(installed).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}
