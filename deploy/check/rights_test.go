package check

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// pods are the pod templates of a rendering by the names of their owners.
func pods(t *testing.T, all []runtime.Object) map[string]corev1.PodSpec {
	t.Helper()
	out := map[string]corev1.PodSpec{}
	for _, o := range all {
		switch o := o.(type) {
		case *appsv1.Deployment:
			out[o.Name] = o.Spec.Template.Spec
		case *appsv1.StatefulSet:
			out[o.Name] = o.Spec.Template.Spec
		case *appsv1.DaemonSet:
			out[o.Name] = o.Spec.Template.Spec
		}
	}
	return out
}

// everyPod calls fn with every pod of every file of values.
func everyPod(t *testing.T, fn func(t *testing.T, name string, pod corev1.PodSpec)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(values, "*.yaml"))
	must(t, err)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		found := pods(t, objects(t, name))
		want := 3
		if found["clustermesh-sockets"].Containers == nil && (name == "cleanup" || name == "removal") {
			want = 2 // there is nothing that it could look at
		}
		if len(found) != want {
			t.Errorf("%s: %d workloads, want %d", name, len(found), want)
		}
		for owner, pod := range found {
			t.Run(name+"/"+owner, func(t *testing.T) { fn(t, owner, pod) })
		}
	}
}

// TestRights: no container is privileged or can become it, nothing writes to the
// image, and capabilities are those of docs/adr/0006 in the agents and none in
// the apiserver.
func TestRights(t *testing.T) {
	agents := []corev1.Capability{"BPF", "NET_ADMIN", "PERFMON"}
	everyPod(t, func(t *testing.T, owner string, pod corev1.PodSpec) {
		if pod.HostPID || pod.HostIPC || pod.SecurityContext.SeccompProfile == nil || pod.SecurityContext.SeccompProfile.Type == corev1.SeccompProfileTypeUnconfined {
			t.Errorf("the pod's security context is %+v", pod.SecurityContext)
		}
		for _, c := range append(pod.InitContainers, pod.Containers...) {
			s := c.SecurityContext
			if s.Privileged != nil && *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
				t.Errorf("%s has %+v", c.Name, s)
			}
			want := agents
			switch {
			case owner == "clustermesh-apiserver" || c.Name == "cleaned":
				want = nil
			case owner == "clustermesh-sockets": // docs/adr/0009
				want = append(slices.Clone(agents), "SYS_ADMIN")
			}
			if !slices.Equal(s.Capabilities.Add, want) {
				t.Errorf("%s has %v, want %v", c.Name, s.Capabilities.Add, want)
			}
			if c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
				t.Errorf("%s does not say how much memory it takes", c.Name)
			}
		}
	})
}

// TestApiserverIsNobody: an ordinary user, to whom the certificates are readable
// by their group.
func TestApiserverIsNobody(t *testing.T) {
	pod := pods(t, objects(t, "default"))["clustermesh-apiserver"]
	s := pod.SecurityContext
	if !*s.RunAsNonRoot || *s.RunAsUser != 65532 || *s.FSGroup != 65532 {
		t.Errorf("the security context is %+v", s)
	}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			t.Errorf("%s is a directory of the node", v.Name)
		}
		if v.Secret != nil && *v.Secret.DefaultMode != 0o440 {
			t.Errorf("%s has mode %o", v.Name, *v.Secret.DefaultMode)
		}
	}
}

// TestSocketsSeeTheNode: the node's network and where the namespaces of its pods
// are, which cannot be written and shows what comes later; no token of Kubernetes.
func TestSocketsSeeTheNode(t *testing.T) {
	pod := pods(t, objects(t, "default"))["clustermesh-sockets"]
	if !pod.HostNetwork || *pod.AutomountServiceAccountToken || len(pod.Volumes) != 2 {
		t.Errorf("the pod is %+v", pod)
	}
	for _, m := range pod.Containers[0].VolumeMounts {
		if netns := m.Name == "netns"; netns != m.ReadOnly || netns != (m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationHostToContainer) {
			t.Errorf("%+v", m)
		}
	}
}

// TestAgentSeesLittleOfItsNode: three directories, of which the one that is not
// ours cannot be written; no token of Kubernetes; the node's network only where
// the node's devices are at stake.
func TestAgentSeesLittleOfItsNode(t *testing.T) {
	want := map[string]string{"bpffs": "/sys/fs/bpf/clustermesh", "cgroup": "/sys/fs/cgroup", "run": "/var/run/clustermesh"}
	everyPod(t, func(t *testing.T, owner string, pod corev1.PodSpec) {
		// Kubernetes describes Services in variables that begin with their names.
		if *pod.EnableServiceLinks {
			t.Error("variables of Services could set flags")
		}
		if owner != "clustermesh-agent" {
			return
		}
		if *pod.AutomountServiceAccountToken {
			t.Error("the agent has a token")
		}
		got := map[string]string{}
		for _, v := range pod.Volumes {
			if v.HostPath != nil {
				got[v.Name] = v.HostPath.Path
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("mounted are %v, want %v", got, want)
		}
		for _, c := range append(pod.InitContainers, pod.Containers...) {
			for _, m := range c.VolumeMounts {
				if m.Name == "cgroup" && !m.ReadOnly || m.MountPropagation != nil {
					t.Errorf("%s: %+v", c.Name, m)
				}
			}
		}
	})
	for name, hostNetwork := range map[string]bool{"default": false, "members": false, "devices": true, "monitored": true, "cleanup": false, "removal": true} {
		if got := pods(t, objects(t, name))["clustermesh-agent"].HostNetwork; got != hostNetwork {
			t.Errorf("%s: hostNetwork %v, want %v", name, got, hostNetwork)
		}
	}
}
