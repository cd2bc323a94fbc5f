package demo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/clustermesh/clustermesh/certs"
)

// mesh is the two clusters and what they share.
type mesh struct {
	cfg     Config
	found   machine
	dir     string // temporary
	cgroups *cgroup
	wire    *place

	east, west *cluster
}

func (m *mesh) clusters() []*cluster { return []*cluster{m.east, m.west} }
func (m *mesh) pki() string          { return filepath.Join(m.dir, "pki") }
func (m *mesh) logs() string         { return filepath.Join(m.dir, "logs") }

func (m *mesh) peer(c *cluster) *cluster {
	if c == m.east {
		return m.west
	}
	return m.east
}

// prepare writes all files: certificates, manifests, connections.
func (m *mesh) prepare() error {
	var err error
	// A short path, because those of unix sockets are limited.
	if m.dir, err = os.MkdirTemp("", "clustermesh-demo-"); err != nil {
		return err
	}
	if err := os.Mkdir(m.logs(), 0o700); err != nil {
		return err
	}
	if m.east, err = newCluster(m.cfg, m.dir, "east", 1, "192.168.50.11"); err != nil {
		return err
	}
	if m.west, err = newCluster(m.cfg, m.dir, "west", 2, "192.168.50.21"); err != nil {
		return err
	}
	return m.credentials()
}

func (m *mesh) credentials() error {
	if err := certs.InitCA(m.pki(), certs.CAOptions{Name: "clustermesh demo CA"}); err != nil {
		return err
	}
	for _, c := range m.clusters() {
		if err := c.issue(m.pki()); err != nil {
			return err
		}
		for _, peer := range m.clusters() {
			if err := c.connect(m.pki(), peer); err != nil {
				return err
			}
		}
	}
	return nil
}

// build makes the namespaces, links and cgroups.
func (m *mesh) build() error {
	removeStale(m.found.cgroups)
	var err error
	if m.cgroups, err = newCgroup(filepath.Join(m.found.cgroups, cgroupPrefix+strconv.Itoa(os.Getpid()))); err != nil {
		return err
	}
	if m.wire, err = newWire(); err != nil {
		return err
	}
	for _, c := range m.clusters() {
		if err := c.build(m.wire, m.cgroups.path); err != nil {
			return fmt.Errorf("build node of %s: %w", c.name, err)
		}
	}
	return errors.Join(m.east.route(m.west), m.west.route(m.east))
}

// close removes everything, whatever there is of it.
func (m *mesh) close() error {
	for _, c := range m.clusters() {
		if c != nil {
			c.close()
		}
	}
	if m.wire != nil {
		m.wire.close()
	}
	var errs []error
	if m.cgroups != nil {
		errs = append(errs, m.cgroups.remove())
	}
	if m.dir != "" {
		errs = append(errs, os.RemoveAll(m.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
