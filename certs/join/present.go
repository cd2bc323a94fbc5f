package join

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// maxSecret is a Secret of Kubernetes, of 1 MiB, in base64 and with what kubectl
// adds to it.
const maxSecret = 3 << 20

// ReadPeers reads the peers' files that are in place, by name: those of a
// directory, or of the manifest of their Secret as kubectl get -o yaml prints it.
func ReadPeers(path string) (map[string][]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the present peers: %w", err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() { // it is read before and after the other side has answered
		return nil, fmt.Errorf("read the present peers: %s is no regular file; write them to one first", path)
	}
	var files map[string][]byte
	if info.IsDir() {
		files, err = peersIn(path)
	} else {
		files, err = peersOf(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the present peers: %s: %w", path, err)
	}
	return files, nil
}

func peersIn(dir string) (map[string][]byte, error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.yaml"))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, path := range paths {
		name := filepath.Base(path)
		if strings.HasPrefix(name, ".") {
			continue
		}
		if files[name], err = readBounded(path, maxReader); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was read
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}

func peersOf(path string) (map[string][]byte, error) {
	raw, err := readBounded(path, maxSecret)
	if err != nil {
		return nil, err
	}
	doc, err := yamlfile.Parse(raw)
	if errors.Is(err, yamlfile.ErrEmpty) {
		return nil, errors.New("it is empty; if there is no such Secret yet, leave the flag out")
	}
	if err != nil {
		return nil, err
	}
	root := doc.Content[0]
	if kind := member(root, "kind"); kind == nil || kind.Value != "Secret" {
		return nil, errors.New("it is no Secret; write it with: kubectl get secret clustermesh-peers -o yaml")
	}
	files := map[string][]byte{}
	for _, name := range []string{"data", "stringData"} {
		m := member(root, name)
		for i := 0; m != nil && m.Kind == yaml.MappingNode && i+1 < len(m.Content); i += 2 {
			file, text := m.Content[i].Value, []byte(m.Content[i+1].Value)
			if name == "data" {
				if text, err = base64.StdEncoding.DecodeString(m.Content[i+1].Value); err != nil {
					return nil, fmt.Errorf("%s: %.80q: %w", name, file, err)
				}
			}
			files[file] = text
		}
	}
	return files, nil
}

// Strays are the present peers' files that are of none of the peers: what was
// printed without them does not hold them any more.
func (o SecretOptions) Strays(peers []Known) []string {
	var out []string
	for name := range o.Present {
		if !slices.ContainsFunc(peers, func(k Known) bool { return peerFile(k.Cluster) == name }) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// present returns the file of a cluster that is in place, or nil.
func (o SecretOptions) present(cluster string) (*reader, error) {
	raw, ok := o.Present[peerFile(cluster)]
	if !ok {
		return nil, nil
	}
	f, err := parseReader(raw)
	if err != nil {
		return nil, fmt.Errorf("keep what %s restricts: %w; correct or remove it first", peerFile(cluster), err)
	}
	f.ca = []byte(f.text("ca"))
	if at := f.text("ca-file"); at != "" {
		f.ca = o.Present[at] // in the same Secret, or out of reach from here
	}
	return f, nil
}

// copied reports whether the file of a cluster that is in place holds one of the
// own CAs as text. It goes on to do so, with all that are the own ones now: an
// apiserver that is older than this command knows nothing else, and another
// cluster that comes or goes must not shut this one out.
func (o SecretOptions) copied(k Known, own []*x509.Certificate) (bool, error) {
	f, err := o.present(k.Cluster)
	if err != nil || f == nil {
		return false, err
	}
	return string(f.ca) != "own" && f.trusts(own), nil
}

// caText is the member of a peer's file with a bundle in PEM.
func caText(bundle []byte) string {
	var b strings.Builder
	b.WriteString("ca: |\n")
	for line := range strings.Lines(string(bundle)) {
		b.WriteString("  " + line)
	}
	return b.String()
}

// stays is what [plain] is for a peer that is printed again because another one
// comes or goes: nothing that somebody wrote into its file is lost. Peers with a
// copy of the same CA have to say that they share it.
func (o SecretOptions) stays(k Known, copied bool) (string, error) {
	f, err := o.present(k.Cluster)
	if err != nil || f == nil {
		return plain(k), err
	}
	return merged(f.root(), k, func(name string) bool {
		if name == "shares-ca-with" {
			return copied
		}
		return !slices.Contains([]string{"identity", "ca", "ca-file", "revoked-certificates"}, name)
	})
}

// joins is the same for the peer that comes, by the rules of [kept].
func (o SecretOptions) joins(p Peer) (string, error) {
	f, err := o.present(p.Cluster)
	if err != nil || f == nil {
		return plain(p.known()), err
	}
	return f.kept(peerFile(p.Cluster), p)
}
