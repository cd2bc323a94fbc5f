package check

import (
	"maps"
	"regexp"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// listed are the resources that the apiserver's source code lists and watches,
// group/resource, each with the clients that it uses for it.
func listed(t *testing.T) map[string]bool {
	t.Helper()
	source := readFile(t, root+"/apiserver/source/kubernetes.go")
	groups := map[string]string{"corev1": "", "discoveryv1": "discovery.k8s.io"}
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+Group)\s+= "([^"]+)"$`).FindAllStringSubmatch(readFile(t, root+"/apiserver/source/optional.go"), -1) {
		groups[m[1]] = m[2]
	}
	out := map[string]bool{}
	add := func(group, resource string) {
		name, known := groups[group]
		if !known {
			t.Fatalf("the group of %s is %s, which this test does not know", resource, group)
		}
		out[name+"/"+resource] = true
	}
	for _, m := range regexp.MustCompile(`newResource\("(\w+)", &(\w+)\.`).FindAllStringSubmatch(source, -1) {
		add(m[2], m[1])
	}
	for _, m := range regexp.MustCompile(`k\.custom\((\w+), [^,]+, "(\w+)"`).FindAllStringSubmatch(source, -1) {
		add(m[1], m[2])
	}
	if len(out) < 10 {
		t.Fatalf("only %v were found in the source", out)
	}
	return out
}

// granted are the resources of the rendered role, after checking that it may
// only look; Events it writes.
func granted(t *testing.T, name string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	role := only[*rbacv1.ClusterRole](t, objects(t, name), "clustermesh-apiserver")
	for _, rule := range role.Rules {
		if slices.Equal(rule.Resources, []string{"events"}) {
			if !slices.Equal(rule.Verbs, []string{"create", "patch"}) {
				t.Errorf("Events may be %v, want create and patch", rule.Verbs)
			}
			continue
		}
		if !slices.Equal(rule.Verbs, []string{"list", "watch"}) || len(rule.APIGroups) != 1 {
			t.Errorf("a rule is for %v of %v, want list and watch of one group", rule.Verbs, rule.APIGroups)
		}
		for _, r := range rule.Resources {
			out[rule.APIGroups[0]+"/"+r] = true
		}
	}
	return out
}

// TestRole: the role grants what the apiserver reads and nothing else, and less
// where it is told to read less.
func TestRole(t *testing.T) {
	all := listed(t)
	without := func(names ...string) map[string]bool {
		out := maps.Clone(all)
		for _, n := range names {
			if !out[n] {
				t.Fatalf("%s is not read by the source", n)
			}
			delete(out, n)
		}
		return out
	}
	cases := map[string]map[string]bool{
		"default":   all,
		"cilium":    without("/nodes", "/pods", "multicluster.x-k8s.io/serviceexports"),
		"monitored": without("cilium.io/ciliumnodes", "cilium.io/ciliumidentities", "cilium.io/ciliumendpoints", "cilium.io/ciliumendpointslices"),
	}
	for name, want := range cases {
		if got := granted(t, name); !maps.Equal(got, want) {
			t.Errorf("%s: granted %v, read %v", name, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	}
}

// TestOnlyTheApiserverHasRights: one binding, of the apiserver's account.
func TestOnlyTheApiserverHasRights(t *testing.T) {
	all := objects(t, "default")
	for _, o := range all {
		switch o.(type) {
		case *rbacv1.Role, *rbacv1.RoleBinding:
			t.Errorf("%T is not expected", o)
		}
	}
	binding := only[*rbacv1.ClusterRoleBinding](t, all, "clustermesh-apiserver")
	want := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "clustermesh-apiserver", Namespace: namespace}}
	if !slices.Equal(binding.Subjects, want) || binding.RoleRef.Name != "clustermesh-apiserver" {
		t.Errorf("bound are %v to %s", binding.Subjects, binding.RoleRef.Name)
	}
}
