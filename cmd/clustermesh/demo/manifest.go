package demo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"
)

// manifest is one YAML file of a cluster with the few members the demo needs.
type manifest struct {
	name string // of the file
	docs []document
}

type document struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name      string `yaml:"name"`
		Namespace string `yaml:"namespace"`
	} `yaml:"metadata"`
	Spec struct {
		ClusterIP string `yaml:"clusterIP"`
		Ports     []struct {
			Port uint16 `yaml:"port"`
		} `yaml:"ports"`
	} `yaml:"spec"`
	Ports []struct {
		Port uint16 `yaml:"port"`
	} `yaml:"ports"`
	Endpoints []struct {
		Addresses []netip.Addr `yaml:"addresses"`
		TargetRef struct {
			Name string `yaml:"name"`
		} `yaml:"targetRef"`
	} `yaml:"endpoints"`

	raw yaml.Node
}

// pod is one backend: what answers under an address.
type pod struct {
	name string
	addr netip.AddrPort
}

// service is the global service the demo talks to, as one cluster has it.
type service struct {
	namespace, name string
	frontend        netip.AddrPort
	pods            []pod
}

func (s service) String() string { return s.namespace + "/" + s.name }

func (s service) url() string {
	if s.frontend.Port() == 80 {
		return "http://" + strings.TrimSuffix(s.frontend.String(), ":80") + "/"
	}
	return "http://" + s.frontend.String() + "/"
}

// readManifests reads every YAML file of one cluster's directory.
func readManifests(files fs.FS, cluster string) ([]manifest, error) {
	names, err := fs.Glob(files, path.Join(cluster, "*.yaml"))
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no %s/*.yaml: %w", cluster, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("read example manifests: %w", err)
	}
	var out []manifest
	for _, name := range names {
		data, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read example manifests: %w", err)
		}
		docs, err := parseDocuments(data)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
		out = append(out, manifest{name: path.Base(name), docs: docs})
	}
	return out, nil
}

func parseDocuments(data []byte) ([]document, error) {
	var docs []document
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var d document
		err := dec.Decode(&d.raw)
		if err == nil {
			err = d.raw.Decode(&d)
		}
		switch {
		case errors.Is(err, io.EOF):
			return docs, nil
		case err != nil:
			return nil, err
		}
		docs = append(docs, d)
	}
}

// findService picks the one Service of the manifests and the pods behind it.
func findService(manifests []manifest) (service, error) {
	var s service
	for _, d := range documents(manifests) {
		if err := s.take(d); err != nil {
			return s, err
		}
	}
	if !s.frontend.IsValid() || len(s.pods) == 0 {
		return s, errors.New("the examples must hold a Service with an address and a port, and an EndpointSlice with endpoints")
	}
	return s, nil
}

func documents(manifests []manifest) []document {
	var docs []document
	for _, m := range manifests {
		docs = append(docs, m.docs...)
	}
	return docs
}

func (s *service) take(d document) error {
	switch d.Kind {
	case "Service":
		ip, err := netip.ParseAddr(d.Spec.ClusterIP)
		if err != nil || len(d.Spec.Ports) == 0 || s.name != "" {
			return fmt.Errorf("service %s/%s: the demo needs exactly one, with a clusterIP and a port", d.Metadata.Namespace, d.Metadata.Name)
		}
		s.namespace, s.name = d.Metadata.Namespace, d.Metadata.Name
		s.frontend = netip.AddrPortFrom(ip, d.Spec.Ports[0].Port)
	case "EndpointSlice":
		s.takePods(d)
	}
	return nil
}

func (s *service) takePods(d document) {
	for _, e := range d.Endpoints {
		for _, ip := range e.Addresses {
			for _, p := range d.Ports {
				s.pods = append(s.pods, pod{name: e.TargetRef.Name, addr: netip.AddrPortFrom(ip, p.Port)})
			}
		}
	}
}

// render writes the documents back as YAML, with the endpoints of every
// EndpointSlice left out when withdrawn is set.
func (m manifest) render(withdrawn bool) ([]byte, error) {
	var parts []string
	for _, d := range m.docs {
		node := d.raw
		if withdrawn && d.Kind == "EndpointSlice" {
			node = without(node, "endpoints")
		}
		text, err := yaml.Marshal(&node)
		if err != nil {
			return nil, fmt.Errorf("write manifest %s: %w", m.name, err)
		}
		parts = append(parts, string(text))
	}
	return []byte(strings.Join(parts, "---\n")), nil
}

// without returns a document whose top-level member key is an empty list. The
// original is not changed.
func without(doc yaml.Node, key string) yaml.Node {
	top := *doc.Content[0]
	top.Content = append([]*yaml.Node(nil), top.Content...)
	for i := 0; i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == key {
			top.Content[i+1] = &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		}
	}
	doc.Content = []*yaml.Node{&top}
	return doc
}
