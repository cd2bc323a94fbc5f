package mesh_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden plays the script of every testdata file, keys and values in,
// through the packages mesh and lb and compares the selection that comes out.
//
// A script is a list of commands; indented lines belong to the one above:
//
//	announce CLUSTER [MODE] [cached]   a connection is accepted
//	put KEY [WORD...]                  a key is heard, with the value below, see parseValue
//	delete KEY                         a deletion is heard
//	synced CLUSTER                     the list of keys is complete
//	lost CLUSTER                       the connection ends
//	forget CLUSTER                     the next watch starts from an empty memory
//	remove CLUSTER                     the cluster is no longer configured
//	show NAME                          print tables and status
//	same NAME                          the tables are those that were shown under NAME
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 20 {
		t.Fatalf("found %d golden files, error %v", len(files), err)
	}
	codec := &schema.SliceCodec{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil || len(a.Files) != 2 {
				t.Fatalf("%d sections, error %v", len(a.Files), err)
			}
			p := &play{T: t, codec: codec, m: mesh.New(config()), clusters: map[string]schema.ClusterConfig{}, shown: map[string]string{}}
			p.run(string(a.Files[0].Data))
			got := p.out.String()
			if *update {
				a.Files[1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(a.Files[1].Data); got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

// play is one script's run.
type play struct {
	*testing.T
	codec    *schema.SliceCodec
	m        *mesh.Mesh
	clusters map[string]schema.ClusterConfig // as announced
	shown    map[string]string
	out      strings.Builder
}

func (p *play) run(script string) {
	lines := strings.Split(strings.TrimRight(script, "\n"), "\n")
	for len(lines) > 0 {
		n := 1
		for n < len(lines) && strings.HasPrefix(lines[n], " ") {
			n++
		}
		if words := strings.Fields(lines[0]); len(words) > 1 {
			p.command(words[0], words[1], words[2:], lines[1:n])
		} else if len(words) == 1 {
			p.Fatalf("bad line %q", lines[0])
		}
		lines = lines[n:]
	}
	if err := p.m.Audit(); err != nil {
		p.Error(err)
	}
}

func (p *play) command(verb, object string, words, body []string) {
	switch verb {
	case "announce":
		p.announce(object, words)
	case "put", "delete":
		ch := mesh.Change{Key: object, Deleted: verb == "delete"}
		cluster, kind, name := p.parseKey(object)
		if !ch.Deleted {
			ch.Value = p.parseValue(cluster, kind, name, words, body)
		}
		p.m.Apply(cluster, []mesh.Change{ch})
	case "synced":
		p.m.Synced(object)
	case "lost":
		p.m.Disconnected(object, "no route to host")
	case "forget":
		p.m.Relist(object)
	case "remove":
		p.m.RemoveCluster(object)
	case "show":
		p.shown[object] = p.tables()
		fmt.Fprintf(&p.out, "%s\n%s%s\n", object, indent(p.shown[object]), indent(p.status()))
	case "same":
		if got := p.tables(); got != p.shown[object] {
			p.Errorf("tables are\n%snot as under %s\n%s", got, object, p.shown[object])
		}
	default:
		p.Fatalf("unknown command %s", verb)
	}
}

func (p *play) announce(cluster string, words []string) {
	c := announce(cluster)
	for _, w := range words {
		if w == "cached" {
			c.Capabilities.Cached = true
		} else {
			c.Capabilities.EndpointSlicesExportMode = w
		}
	}
	p.clusters[cluster] = c
	p.m.AddCluster(cluster, mesh.Policy{})
	if _, err := p.m.Connected(cluster, c); err != nil {
		p.Fatal(err)
	}
}

// parseKey finds the connection over which a key would come.
func (p *play) parseKey(key string) (cluster string, kind schema.Kind, name lb.ServiceName) {
	for _, kind := range []schema.Kind{schema.KindLocalService, schema.KindService, schema.KindEndpointSlice} {
		for cluster, config := range p.clusters {
			if ns, short, err := schema.ParseServiceKey(kind, cluster, config.Capabilities.Cached, key); err == nil {
				return cluster, kind, lb.ServiceName{Namespace: ns, Name: short}
			}
		}
	}
	p.Fatalf("no announced cluster has key %s", key)
	return cluster, kind, name
}

func (p *play) tables() string {
	var out []lb.FrontendTable
	for _, n := range p.m.Services() {
		s, _ := p.m.Service(n)
		out = append(out, lb.Merge(s)...)
	}
	return lb.Format(out)
}

func (p *play) status() string {
	var b strings.Builder
	for _, s := range p.m.Status() {
		fmt.Fprintf(&b, "%s: %s, %d services, %d backends from %s", s.Name, s.State, s.Services, s.Backends, s.Source)
		if s.Restored > 0 {
			fmt.Fprintf(&b, ", %d provisional with %d backends", s.Provisional.Services, s.Provisional.Backends)
		}
		if refused := rejections(s); refused != "" {
			fmt.Fprintf(&b, ", refused %s", refused)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func indent(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i := range lines[:len(lines)-1] {
		lines[i] = "  " + lines[i]
	}
	return strings.Join(lines, "")
}
