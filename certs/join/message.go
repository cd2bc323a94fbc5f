package join

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

const (
	kindRequest      = "ClusterMeshJoinRequest"
	kindApproval     = "ClusterMeshJoinApproval"
	kindConfirmation = "ClusterMeshJoinConfirmation"

	messageVersion = 1
	maxMessage     = 64 << 10
	maxEndpoints   = 8
)

// Header is how every message begins.
type Header struct {
	Kind    string `json:"kind"`
	Version int    `json:"version"`
}

// Party is what one cluster tells of itself.
type Party struct {
	Cluster string `json:"cluster"`
	// ID is its number in the mesh, at most MaxClusters, which is 255 or 511 and
	// the same in all clusters of a mesh.
	ID          uint32 `json:"clusterId"`
	MaxClusters uint32 `json:"maxConnectedClusters"`
	// Endpoints are https://host:port of its clustermesh-apiserver; none if it
	// only connects to others and is not connected to.
	Endpoints []string `json:"endpoints,omitempty"`
	// CA is its bundle in PEM, with which its server is verified.
	CA string `json:"ca"`
}

// Request is what a cluster that wants to join another sends.
type Request struct {
	Header
	From    Party     `json:"from"`
	CSR     string    `json:"csr"`     // PKCS #10 in PEM, for remote-<cluster>
	Expires time.Time `json:"expires"` // until when it may be approved
}

// Approval answers a Request.
type Approval struct {
	Header
	Request     string `json:"request"` // ID of the request
	From        Party  `json:"from"`
	Certificate string `json:"certificate"` // for the CSR of the request
	// CSR asks for remote-<cluster> of the approving side; empty if the other
	// side has no endpoints to connect to.
	CSR string `json:"csr,omitempty"`
}

// Confirmation answers the CSR of an Approval.
type Confirmation struct {
	Header
	Request     string `json:"request"` // ID of the request
	Certificate string `json:"certificate"`
}

// WriteFile puts c into a file, whole or not at all. What is there and is no
// regular file, such as a link that leads elsewhere, is left alone.
func (c Confirmation) WriteFile(path string) error {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("write confirmation: %s is no regular file; name another one with --confirmation", path)
	}
	return disk.Replace(path, disk.CertMode, Encode(c))
}

// ID names a request by the key that it is for: 128 bits of a hash of its CSR.
func (r Request) ID() string {
	sum := sha256.Sum256([]byte(r.CSR))
	return hex.EncodeToString(sum[:16])
}

// FingerprintOf is what both ends of a file read to each other to know that it
// was not changed on the way: 80 bits of its SHA-256 in groups of four.
func FingerprintOf(message []byte) string {
	sum := sha256.Sum256(bytes.TrimSpace(message))
	text := hex.EncodeToString(sum[:10])
	var groups []string
	for i := 0; i < len(text); i += 4 {
		groups = append(groups, text[i:i+4])
	}
	return strings.Join(groups, "-")
}

// Encode is a message as text. It holds no secret.
func Encode(message any) []byte {
	data, err := json.MarshalIndent(message, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", message, err)) // they are made of strings and times of four-digit years
	}
	return append(data, '\n')
}

// DecodeRequest reads and checks a request from elsewhere.
func DecodeRequest(data []byte) (Request, error) {
	var r Request
	if err := decode(data, kindRequest, &r); err != nil {
		return Request{}, err
	}
	role := certs.Role{Kind: certs.Remote, Cluster: r.From.Cluster}
	if err := r.From.validate(len(r.From.Endpoints) > 0); err != nil {
		return Request{}, fmt.Errorf("check request: %w", err)
	}
	if _, err := certs.CheckSigningRequest([]byte(r.CSR), role); err != nil {
		return Request{}, fmt.Errorf("check request: %w", err)
	}
	if err := checkExpiry(r.Expires.Unix()); err != nil {
		return Request{}, fmt.Errorf("check request: %w", err)
	}
	return r, nil
}

// DecodeAnswer reads and checks an approval or a confirmation from elsewhere;
// one of the two results is set.
func DecodeAnswer(data []byte) (*Approval, *Confirmation, error) {
	var h Header
	if err := json.Unmarshal(bounded(data), &h); err == nil && h.Kind == kindConfirmation {
		c, err := decodeConfirmation(data)
		return nil, &c, err
	}
	var a Approval
	if err := decode(data, kindApproval, &a); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(checkID(a.Request), a.From.validate(true)); err != nil {
		return nil, nil, fmt.Errorf("check approval: %w", err)
	}
	if a.CSR != "" {
		role := certs.Role{Kind: certs.Remote, Cluster: a.From.Cluster}
		if _, err := certs.CheckSigningRequest([]byte(a.CSR), role); err != nil {
			return nil, nil, fmt.Errorf("check approval: %w", err)
		}
	}
	return &a, nil, nil
}

func decodeConfirmation(data []byte) (Confirmation, error) {
	var c Confirmation
	if err := decode(data, kindConfirmation, &c); err != nil {
		return Confirmation{}, err
	}
	return c, checkID(c.Request)
}

func bounded(data []byte) []byte { return data[:min(len(data), maxMessage)] }

// decode is strict: what this version does not know could be a condition that it
// must not overlook.
func decode(data []byte, kind string, into any) error {
	if len(data) > maxMessage {
		return fmt.Errorf("read %s: larger than %d bytes", kind, maxMessage)
	}
	var h Header
	if err := json.Unmarshal(data, &h); err != nil {
		return fmt.Errorf("read %s: %w; is it the right file, and whole?", kind, err)
	}
	if h.Kind != kind || h.Version != messageVersion {
		return fmt.Errorf("read %s: it is a %.40q of version %d, wanted version %d", kind, h.Kind, h.Version, messageVersion)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("read %s: %w", kind, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("read %s: something follows the message", kind)
	}
	return nil
}

func checkID(id string) error {
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 || hex.EncodeToString(raw) != id {
		return fmt.Errorf("request id %.40q is not 32 lower-case hexadecimal digits", id)
	}
	return nil
}

// validate checks what a party says of itself. A party that others connect to
// needs a CA.
func (p Party) validate(reached bool) error {
	errs := []error{CheckName(p.Cluster), p.checkID()}
	if len(p.Endpoints) > maxEndpoints {
		errs = append(errs, fmt.Errorf("%d endpoints, at most %d are taken", len(p.Endpoints), maxEndpoints))
	}
	for _, e := range p.Endpoints[:min(len(p.Endpoints), maxEndpoints)] {
		errs = append(errs, checkEndpoint(e))
	}
	if reached || p.CA != "" {
		_, err := certs.ParseBundle([]byte(p.CA))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// CheckName refuses, beside what is no name, those that mean something else to
// Cilium, or in metrics.
func CheckName(name string) error {
	if slices.Contains([]string{"default", "local", "other"}, name) {
		return fmt.Errorf("cluster name %q has a meaning of its own; give the cluster another one", name)
	}
	return certs.CheckCluster(name)
}

func (p Party) checkID() error {
	switch {
	case p.MaxClusters != 255 && p.MaxClusters != 511:
		return fmt.Errorf("max-connected-clusters %d: use 255 or 511, the same in all clusters of a mesh", p.MaxClusters)
	case p.ID == 0 || p.ID > p.MaxClusters:
		return fmt.Errorf("cluster id %d: give each cluster of a mesh an id of its own from 1 to %d", p.ID, p.MaxClusters)
	}
	return nil
}

// checkEndpoint wants exactly https://host:port: the text goes into a cluster
// file as it is.
func checkEndpoint(e string) error {
	u, err := url.Parse(e)
	if err != nil || u.Scheme != "https" || u.Host == "" || "https://"+u.Host != e {
		return fmt.Errorf("endpoint %.100q is not of the form https://host:port", e)
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || net.JoinHostPort(host, port) != u.Host {
		return fmt.Errorf("endpoint %.100q is not of the form https://host:port", e)
	}
	return checkHostPort(u.Host)
}
