package agent

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// A peer file says what is accepted of one other cluster, whose name is the
// file's without ".yaml":
//
//	accepts:
//	  cluster-id: 3                     # the only id it may announce
//	  pod-cidrs: [10.3.0.0/16]          # where its backends must lie
//	  namespaces: [shop]                # whose services take its backends
//	  max-keys: 10000                   # service records or endpoint slices
//	  max-bytes: 67108864               # keys and values together
//	  max-backends: 100000
//	  max-service-backends: 10000       # of one port of a service and address family
//	  withdrawal-brake-percent: 50      # 0 for no brake
//
// Each member may be left out. The members beside accepts are those of the
// apiserver's peer files, so that one file can serve both; they mean nothing
// here. What is not known is refused: a misspelt restriction must not be
// ignored.
type peerFile struct {
	Accepts *accepts
}

type accepts struct {
	ClusterID          *uint32  `yaml:"cluster-id"`
	PodCIDRs           []string `yaml:"pod-cidrs"`
	Namespaces         []string `yaml:"namespaces"`
	MaxKeys            *int     `yaml:"max-keys"`
	MaxBytes           *int64   `yaml:"max-bytes"`
	MaxBackends        *int     `yaml:"max-backends"`
	MaxServiceBackends *int     `yaml:"max-service-backends"`
	Brake              *int     `yaml:"withdrawal-brake-percent"`
}

// admission is what the operator says of one cluster: what the mesh accepts,
// and what its watch may make this node hold (0 for the defaults).
type admission struct {
	mesh.Policy
	maxKeys  int
	maxBytes int64
}

const (
	// maxPeerFile bounds a peer file; those of the apiserver may hold CAs.
	maxPeerFile = 1 << 20
	// maxListed bounds the ranges and the namespaces of a peer, each.
	maxListed = 1024
)

// foreignMembers are those that a peer file has for the apiserver.
func foreignMembers() []string {
	return []string{"ca", "ca-file", "shares-ca-with", "identity", "sees", "expires", "revoked", "revoked-certificates"}
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (f *peerFile) UnmarshalYAML(n *yaml.Node) error {
	if err := yamlfile.Known(n, "", append(foreignMembers(), "accepts")...); err != nil {
		return err
	}
	for i := 0; i < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		if name.Value == "accepts" {
			return value.Decode(&f.Accepts)
		}
		for k := 0; value.Kind == yaml.MappingNode && k < len(value.Content); k += 2 {
			if inner := value.Content[k]; inner.Value == "accepts" {
				return fmt.Errorf("line %d: accepts is inside of %s, where it means nothing; begin its line where %s begins", inner.Line, name.Value, name.Value)
			}
		}
	}
	return nil
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (a *accepts) UnmarshalYAML(n *yaml.Node) error {
	if err := yamlfile.Known(n, "accepts.", "cluster-id", "pod-cidrs", "namespaces", "max-keys", "max-bytes", "max-backends", "max-service-backends", "withdrawal-brake-percent"); err != nil {
		return err
	}
	type plain accepts
	return n.Decode((*plain)(a))
}

// readPeerFile reads and checks one peer file. The error joins all problems.
func readPeerFile(path string, maxClusters uint32) (admission, error) {
	raw, err := readPeerBytes(path)
	if err != nil {
		return admission{}, err
	}
	return parsePeerFile(raw, maxClusters)
}

func readPeerBytes(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxPeerFile:
		return nil, fmt.Errorf("not a regular file of at most %d bytes; replace it", maxPeerFile)
	case info.Mode().Perm()&0o002 != 0:
		return nil, fmt.Errorf("mode %04o lets everybody change what is accepted; chmod o-w", info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxPeerFile+1))
	if err == nil && len(raw) > maxPeerFile {
		err = fmt.Errorf("larger than %d bytes", maxPeerFile)
	}
	return raw, err
}

func parsePeerFile(raw []byte, maxClusters uint32) (admission, error) {
	var f peerFile
	doc, err := yamlfile.Parse(raw)
	if err == nil {
		err = doc.Decode(&f)
	}
	if err != nil {
		return admission{}, fmt.Errorf("parse YAML: %w", err)
	}
	if f.Accepts == nil {
		return admission{}, nil
	}
	return f.Accepts.admission(maxClusters)
}

func (a *accepts) admission(maxClusters uint32) (admission, error) {
	keys := orZero(a.MaxKeys)
	out := admission{maxKeys: keys, maxBytes: orZero(a.MaxBytes), Policy: mesh.Policy{
		ID: orZero(a.ClusterID), Namespaces: a.Namespaces, MaxServices: keys, MaxSlices: keys, MaxBackends: orZero(a.MaxBackends), MaxServiceBackends: orZero(a.MaxServiceBackends),
	}}
	var errs []error
	for _, text := range a.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			errs = append(errs, fmt.Errorf("accepts.pod-cidrs %q: not a range; write it like 10.3.0.0/16", text))
			continue
		}
		out.Allow = append(out.Allow, p)
	}
	if a.Brake != nil {
		out.Brake = *a.Brake
		if err := mesh.ValidateBrake(*a.Brake); err != nil {
			errs = append(errs, fmt.Errorf("accepts.withdrawal-brake-percent: %w", err))
		}
		if *a.Brake == 0 {
			out.Brake = mesh.NoBrake
		}
	}
	errs = append(errs, a.checkNumbers(), a.checkLists())
	if a.ClusterID != nil && *a.ClusterID == 0 {
		errs = append(errs, errors.New("accepts.cluster-id 0: no cluster has it; leave it out to accept any"))
	} else if a.ClusterID != nil {
		if err := (mesh.Policy{ID: out.ID}).Validate(maxClusters); err != nil {
			errs = append(errs, fmt.Errorf("accepts.cluster-id: %w", err))
		}
	}
	return out, errors.Join(errs...)
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (a *accepts) checkNumbers() error {
	return errors.Join(positive("max-keys", a.MaxKeys), positive("max-bytes", a.MaxBytes), positive("max-backends", a.MaxBackends), positive("max-service-backends", a.MaxServiceBackends))
}

// positive refuses 0, which would be no limit of its own and looks like one.
func positive[T int | int64](name string, n *T) error {
	if n != nil && *n <= 0 {
		return fmt.Errorf("accepts.%s %d: must be positive; leave it out for the default", name, *n)
	}
	return nil
}

func (a *accepts) checkLists() error {
	for name, list := range map[string][]string{"pod-cidrs": a.PodCIDRs, "namespaces": a.Namespaces} {
		switch {
		case list != nil && len(list) == 0:
			return fmt.Errorf("accepts.%s: an empty list could mean all or nothing; leave it out to accept all", name)
		case len(list) > maxListed:
			return fmt.Errorf("accepts.%s: %d are listed; at most %d are allowed", name, len(list), maxListed)
		case slices.Contains(list, ""):
			return fmt.Errorf("accepts.%s: an entry is empty; remove or complete it", name)
		}
	}
	return nil
}
