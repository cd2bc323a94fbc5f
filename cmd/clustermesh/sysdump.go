package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// sysdumpFlags say what is gathered.
type sysdumpFlags struct {
	file         string
	node         nodeFlags
	clusters     string
	agentHTTP    string
	apiserver    string
	configs      []string
	logs         []string
	timeout      time.Duration
	withoutProbe bool
}

func newSysdump(a *app) *cobra.Command {
	var f sysdumpFlags
	c := &cobra.Command{
		Use:   "sysdump [-o FILE.tar.gz]",
		Short: "Gather what is needed to look into a fault elsewhere, without secrets",
		Long: `Gather in one archive what this node's agent, an apiserver, the cluster files and
the kernel say: status, services, maps, explanations of services that fail, the
findings of troubleshoot, metrics, the public parts of certificates, and the ends
of log and configuration files that are named.

No key, token or other secret is in it: keys are read only so that they can be
recognised and taken out wherever they turn up, and what has the form of a secret
is taken out as well. The archive always has the same places and at most 32 MiB;
its manifest.json tells of each file its size and checksum, and what is missing
and why.`,
		Example: "  clustermesh sysdump\n  clustermesh sysdump -o node1.tar.gz --log /var/log/clustermesh-agent.log --apiserver http://127.0.0.1:9962",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := usage(positive("timeout", f.timeout)); err != nil {
				return err
			}
			return a.sysdump(c.Context(), f)
		},
	}
	flags := c.Flags()
	flags.StringVarP(&f.file, "output", "o", "", "file of the archive (default clustermesh-sysdump-NODE-TIME.tar.gz)")
	f.node.addPlaces(c)
	flags.StringVar(&f.clusters, "clusters", "/etc/clustermesh/clusters", "the agent's --clusters: what leads to each cluster, without keys")
	flags.StringVar(&f.agentHTTP, "agent-http", "http://127.0.0.1:9964", "http:// address of the agent's --http, for its metrics")
	flags.StringVar(&f.apiserver, "apiserver", "http://127.0.0.1:9962", "http:// address of a clustermesh-apiserver's --http, for its readiness and metrics")
	flags.StringArrayVar(&f.configs, "config-file", nil, "configuration file to add without its secrets; may be repeated")
	flags.StringArrayVar(&f.logs, "log", nil, "log file whose last MiB is added without secrets; may be repeated")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Second, "limit of each request")
	flags.BoolVar(&f.withoutProbe, "offline", false, "do not connect to the clusters to troubleshoot them")
	return c
}

// Bounds of an archive.
const (
	maxEntry = 4 << 20
	maxTail  = 1 << 20
	maxDump  = 32 << 20
)

// dump is an archive in the making. A name has one place whatever is gathered.
type dump struct {
	secrets redactor
	entries map[string][]byte
	size    int
	listed  dumpManifest
}

// dumpManifest is manifest.json.
type dumpManifest struct {
	Version  string        `json:"version"` // of the layout
	Created  time.Time     `json:"created"`
	Node     string        `json:"node"`
	Redacted int           `json:"redacted"`
	Files    []dumpFile    `json:"files"`
	Missing  []dumpMissing `json:"missing"`
}

type dumpFile struct {
	Name   string `json:"name"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
	Cut    bool   `json:"cut"` // only a part of it is there
}

type dumpMissing struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

func newDump(node string, now time.Time) *dump {
	return &dump{entries: map[string][]byte{}, listed: dumpManifest{Version: "1", Created: now, Node: node, Files: []dumpFile{}, Missing: []dumpMissing{}}}
}

func (d *dump) miss(name string, err error) {
	d.listed.Missing = append(d.listed.Missing, dumpMissing{name, d.secrets.text(err.Error())})
}

// text adds a file without its secrets, or notes why it is missing.
func (d *dump) text(name, text string, err error) {
	if err != nil {
		d.miss(name, err)
		return
	}
	d.add(name, []byte(d.secrets.text(text)))
}

// json adds a document without the secrets in its texts.
func (d *dump) json(name string, value any, err error) {
	if err != nil {
		d.miss(name, err)
		return
	}
	text, err := json.Marshal(notNull(value))
	if err != nil {
		d.miss(name, err)
		return
	}
	var plain any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&plain); err != nil {
		d.miss(name, err)
		return
	}
	d.public(name, d.secrets.value(plain))
}

// public adds a document in which every text is known to be none of a secret.
func (d *dump) public(name string, value any) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		d.miss(name, err)
		return
	}
	d.add(name, append(text, '\n'))
}

func (d *dump) add(name string, text []byte) {
	file := dumpFile{Name: name}
	if len(text) > maxEntry {
		text, file.Cut = text[:maxEntry], true
	}
	switch {
	case d.size+len(text) > maxDump:
		d.miss(name, errors.New("the archive has its full size without it"))
		return
	case d.holdsKey(text): // nothing of the above may fail, and if it does the file stays out
		d.miss(name, errors.New("a part of a private key is in it"))
		return
	}
	sum := sha256.Sum256(text)
	file.Bytes, file.SHA256 = len(text), hex.EncodeToString(sum[:])
	d.entries[name], d.size = text, d.size+len(text)
	d.listed.Files = append(d.listed.Files, file)
}

func (d *dump) holdsKey(text []byte) bool {
	return bytes.Contains(text, []byte("PRIVATE KEY-----")) || d.secrets.knows(string(text))
}

// write makes the archive. Its bytes depend on the content alone.
func (d *dump) write(path string) error {
	d.listed.Redacted = d.secrets.count
	byName := func(a, b dumpFile) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(d.listed.Files, byName)
	slices.SortFunc(d.listed.Missing, func(a, b dumpMissing) int { return cmp.Compare(a.Name, b.Name) })
	manifest, err := json.MarshalIndent(d.listed, "", "  ")
	if err != nil {
		return err
	}
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	archive := tar.NewWriter(zipped)
	put := func(name string, text []byte) error {
		err := archive.WriteHeader(&tar.Header{Name: "clustermesh-sysdump/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: d.listed.Created.Truncate(time.Second)})
		if err == nil {
			_, err = archive.Write(text)
		}
		return err
	}
	errs := []error{put("manifest.json", append(manifest, '\n'))}
	for _, f := range d.listed.Files {
		errs = append(errs, put(f.Name, d.entries[f.Name]))
	}
	if err := errors.Join(append(errs, archive.Close(), zipped.Close())...); err != nil {
		return err
	}
	return writeFresh(path, out.Bytes())
}

// writeFresh writes a file that does not exist yet, for its owner alone.
func writeFresh(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the archive: %w; name another with -o", err)
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

func (a *app) sysdump(ctx context.Context, f sysdumpFlags) error {
	waiting := a.progress("gathering")
	defer waiting.end()
	now := time.Now().UTC()
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	d := newDump(host, now)
	path := cmp.Or(f.file, fmt.Sprintf("clustermesh-sysdump-%s-%s.tar.gz", strings.ReplaceAll(host, string(filepath.Separator), "-"), now.Format("20060102T150405Z")))
	f.gather(ctx, d, waiting)
	if err := d.write(path); err != nil {
		return err
	}
	waiting.say("done")
	return a.printDump(path, d)
}

func (a *app) printDump(path string, d *dump) error {
	t := table{header: []string{"ARCHIVE", "FILES", "BYTES", "REDACTED", "MISSING"}}
	t.add(path, fmt.Sprint(len(d.listed.Files)), fmt.Sprint(d.size), fmt.Sprint(d.listed.Redacted), fmt.Sprint(len(d.listed.Missing)))
	a.format = formatTable // -o names the file here
	if err := a.print(nil, t); err != nil {
		return err
	}
	for _, m := range d.listed.Missing {
		if err := a.line("! " + m.Name + " is missing: " + m.Why); err != nil {
			return err
		}
	}
	return nil
}
