package join

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// View is what a peer may read here. Empty means all that is exported; see the
// member sees of a peer's file.
type View struct {
	Namespaces []string `json:"namespaces,omitempty"`
	Services   []string `json:"services,omitempty"` // namespace/name
	Kinds      []string `json:"kinds,omitempty"`    // of nodes, identities, addresses
}

func viewKinds() []string { return []string{"nodes", "identities", "addresses"} }

func (v View) Empty() bool { return len(v.Namespaces)+len(v.Services)+len(v.Kinds) == 0 }

// label is what Kubernetes calls namespaces and services (RFC 1123).
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// maxListed is as many as a peer's file may list.
const maxListed = 1024

// Validate joins all problems of v, each with its value and what to write.
func (v View) Validate() error {
	var errs []error
	if n := len(v.Namespaces) + len(v.Services); n > maxListed {
		errs = append(errs, fmt.Errorf("%d namespaces and services are shown, at most %d can be; name namespaces instead of services", n, maxListed))
	}
	for _, n := range v.Namespaces {
		if !label.MatchString(n) {
			errs = append(errs, fmt.Errorf("namespace %.80q is not the name of one; write it as kubectl get namespaces does", n))
		}
	}
	for _, s := range v.Services {
		namespace, name, _ := strings.Cut(s, "/")
		if !label.MatchString(namespace) || !label.MatchString(name) {
			errs = append(errs, fmt.Errorf("service %.150q is not of the form namespace/name", s))
		}
	}
	for _, k := range v.Kinds {
		if !slices.Contains(viewKinds(), k) {
			errs = append(errs, fmt.Errorf("kind %.40q is not one of %s", k, strings.Join(viewKinds(), ", ")))
		}
	}
	return errors.Join(errs...)
}

// sees is the member of a peer's file.
func (v View) sees() string {
	if v.Empty() {
		return "sees: all\n"
	}
	var b strings.Builder
	b.WriteString("sees:\n")
	list := func(member string, values []string) {
		if len(values) > 0 {
			fmt.Fprintf(&b, "  %s: %s\n", member, flow(values))
		}
	}
	list("namespaces", v.Namespaces)
	list("services", v.Services)
	for _, k := range v.Kinds {
		fmt.Fprintf(&b, "  %s: all\n", k)
	}
	return b.String()
}

// flow is a YAML list on one line. Quotes, because a namespace may be called no.
func flow(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
