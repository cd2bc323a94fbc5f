package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/join"
	"github.com/clustermesh/clustermesh/deploy/examples"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
)

const (
	// joinLimit is how long it may take from the invitation until the agents of
	// both sides use each other's backends, on a busy machine.
	joinLimit = 30 * time.Second
	// cutLimit is how long a peer may go on reading after it was disconnected; 2 s
	// are promised of a machine that is not busy.
	cutLimit = 10 * time.Second
)

// joiner is a cluster without Kubernetes that knows no other: a CA of its own, an
// apiserver that reads manifests, and one node with an agent.
type joiner struct {
	*cluster
	dir    string
	export *apiserver
	agent  *agent
}

func (j *joiner) path(name string) string { return filepath.Join(j.dir, name) }

// site are the flags that say who j is.
func (j *joiner) site() []string {
	return []string{"--dir", j.path("pki"), "--cluster", j.name, "--cluster-id", fmt.Sprint(j.id), "--endpoint", "https://" + j.export.listen}
}

// home are the flags that say where j's agents and apiserver look.
func (j *joiner) home() []string {
	return []string{"--clusters", j.path("clusters"), "--peers", j.path("peers")}
}

// command runs the operator's command.
func command(args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	c := exec.Command(binary("clustermesh"), args...)
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	return strings.TrimSpace(out.String()), errs.String(), err
}

func succeed(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, err := command(args...)
	if err != nil {
		t.Fatalf("clustermesh %s: %v: %s", strings.Join(args, " "), err, errs)
	}
	return out
}

func flags(args []string, more ...[]string) []string {
	for _, m := range more {
		args = append(args, m...)
	}
	return args
}

// newJoiner makes a cluster and starts its parts.
func (w *world) newJoiner(t *testing.T, name string, id int) *joiner {
	t.Helper()
	j := &joiner{cluster: &cluster{name: name, id: id}, dir: filepath.Join(w.dir, name)}
	must(t, os.MkdirAll(j.dir, 0o700))
	must(t, os.Mkdir(j.path("peers"), 0o700))
	must(t, os.CopyFS(j.path("examples"), examples.FS()))
	succeed(t, "certs", "init", "--dir", j.path("pki"), "--name", name+" CA")
	succeed(t, "certs", "issue", "--dir", j.path("pki"), "--kind", "server", "--cluster", name, "--host", "127.0.0.1")
	succeed(t, "certs", "issue", "--dir", j.path("pki"), "--kind", "local", "--cluster", name)
	j.export = &apiserver{
		name: "apiserver-" + name, lab: w.lab, dataDir: j.path("data"),
		listen: fmt.Sprintf("127.0.0.1:%d", 2000+id), http: fmt.Sprintf("127.0.0.1:%d", 3000+id),
	}
	pki := j.path("pki")
	j.export.args = []string{
		"--cluster-name", name, "--cluster-id", fmt.Sprint(id), "--manifests", j.path("examples/" + name), "--data-dir", j.export.dataDir,
		"--listen", j.export.listen, "--http", j.export.http, "--peers", j.path("peers"), "--log-level", "debug",
		"--tls-cert", pki + "/server-" + name + ".crt", "--tls-key", pki + "/server-" + name + ".key", "--tls-client-ca", pki + "/ca.crt",
	}
	j.export.up(t)
	j.addAgent(t, w)
	return j
}

func (j *joiner) addAgent(t *testing.T, w *world) {
	t.Helper()
	n := &node{name: j.name + "-n1", cluster: j.cluster}
	var err error
	n.lab, err = w.lab.AddNode(n.name, prefixes(fmt.Sprintf("192.168.50.%d/24", 10*j.id)), prefixes(fmt.Sprintf("10.%d.16.0/20", j.id)))
	must(t, err)
	j.agent = w.newAgent(t, n, j.id)
	j.agent.clusters = j.path("clusters")
	must(t, os.Mkdir(j.agent.clusters, 0o700))
	pki := j.path("pki")
	j.agent.setCluster(t, j.name, etcdConfig("https://"+j.export.listen, pki+"/ca.crt", pki+"/local-"+j.name+".crt", pki+"/local-"+j.name+".key"))
	n.agent = j.agent
	j.nodes = []*node{n}
	j.agent.up(t)
	t.Cleanup(func() { must(t, n.maps.Close()) })
}

// uses counts the backends of a cluster that j's agent uses for the service that
// all clusters have.
func (j *joiner) uses(t *testing.T, other *joiner) (n int) {
	t.Helper()
	var entries []shownMap
	j.agent.cli(t, &entries, "maps")
	for _, e := range entries {
		for _, b := range e.Backends {
			if e.Name == "rebel-base" && b.Cluster == other.name && b.Selected {
				n++
			}
		}
	}
	return n
}

// await waits until j's agent uses n backends of another cluster and returns how
// long that was after begin.
func (j *joiner) await(t *testing.T, other *joiner, n int, begin time.Time) time.Duration {
	t.Helper()
	for j.uses(t, other) != n {
		if time.Since(begin) > joinLimit {
			t.Fatalf("%s uses %d backends of %s after %v, want %d\n%s\n%s", j.name, j.uses(t, other), other.name, joinLimit, n, logTail(j.agent.Process), logTail(other.export.Process))
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

// awaitStatus waits until j's agent has both clusters synced: what it uses may
// still be what it knew before.
func (j *joiner) awaitStatus(t *testing.T, begin time.Time) time.Duration {
	t.Helper()
	for s := j.agent.status(t); !s.synced(2); s = j.agent.status(t) {
		if time.Since(begin) > joinLimit {
			t.Fatalf("status of %s after %v: %+v", j.name, joinLimit, s)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

// acceptor runs a command that accepts, and returns the first line that it
// prints: the token of invite.
func (w *world) acceptor(t *testing.T, name string, args ...string) (*lab.Process, string) {
	t.Helper()
	out, err := os.Create(filepath.Join(w.dir, name+".out"))
	must(t, err)
	defer out.Close()
	p, err := w.lab.Start(lab.Spec{Name: name, Path: binary("clustermesh"), Args: args, Stdout: out})
	must(t, err)
	deadline := time.After(startLimit)
	for !strings.Contains(readLog(p), "accepting at") {
		select {
		case <-p.Done():
			t.Fatalf("%s has ended: %s", name, readLog(p))
		case <-deadline:
			t.Fatalf("%s does not accept: %s", name, readLog(p))
		case <-time.After(time.Millisecond):
		}
	}
	return p, strings.TrimSpace(readFile(out.Name()))
}

// TestJoin is what an operator does to connect two clusters, on real parts: one
// command on each side, neither a restart nor a kubeconfig, and what becomes of
// the token and of the peer afterwards.
func TestJoin(t *testing.T) {
	requireLab(t)
	must(t, lab.Settle())
	w := &world{dir: scratch(t)}
	var err error
	w.lab, err = lab.New(w.dir)
	must(t, err)
	t.Cleanup(func() { w.close(t) })
	east, west := w.newJoiner(t, "east", 1), w.newJoiner(t, "west", 2)
	east.await(t, east, 2, time.Now())
	west.await(t, west, 2, time.Now())
	if east.uses(t, west)+west.uses(t, east) > 0 {
		t.Fatal("clusters that never heard of each other are connected")
	}
	token := w.connect(t, "first", east, west)
	t.Run("refused", func(t *testing.T) { w.checkTokens(t, east, west, token) })
	t.Run("renewal", func(t *testing.T) { w.checkRenewal(t, east, west) })
	t.Run("disconnect", func(t *testing.T) { w.checkDisconnect(t, east, west) })
}

const joinAddress = "127.0.0.1:2380"

// connect invites west to east and measures until each uses the other's backends.
func (w *world) connect(t *testing.T, which string, east, west *joiner) (token string) {
	t.Helper()
	begin := time.Now()
	args := flags([]string{"invite", "--address", joinAddress, "--listen", joinAddress}, east.site(), east.home())
	accepting, token := w.acceptor(t, "invite-"+which, args...)
	invited := time.Since(begin)
	succeed(t, flags([]string{"join", token}, west.site(), west.home())...)
	joined := time.Since(begin)
	there, back := west.await(t, east, 2, begin), east.await(t, west, 2, begin)
	t.Logf("%s join: invited after %v, joined after %v; west uses east's backends after %v, east uses west's after %v", which, invited, joined, there, back)
	if took := max(there, back); took > joinLimit {
		t.Errorf("the join took %v, %v is the limit", took, joinLimit)
	}
	if code, err := accepting.Exit(startLimit); err != nil || code != 0 {
		t.Errorf("invite ended with %d, %v: %s", code, err, readLog(accepting))
	}
	for _, j := range []*joiner{east, west} {
		t.Logf("%s join: %s has both clusters synced after %v", which, j.name, j.awaitStatus(t, begin))
	}
	return token
}

// checkTokens offers tokens that are used, expired, changed, forged, cancelled or
// meant for somebody else. Each is refused with its reason and leaves nothing.
func (w *world) checkTokens(t *testing.T, east, west *joiner, used string) {
	accepting, _ := w.acceptor(t, "serve", flags([]string{"invite", "serve", "--listen", joinAddress}, east.site(), east.home())...)
	north := &joiner{cluster: &cluster{name: "north", id: 3}, dir: filepath.Join(w.dir, "north"), export: &apiserver{listen: "127.0.0.1:2003"}}
	must(t, os.Mkdir(north.dir, 0o700))
	succeed(t, "certs", "init", "--dir", north.path("pki"))
	invite := func(more ...string) string {
		return succeed(t, flags([]string{"invite", "--address", joinAddress}, east.site(), more)...)
	}
	short, fresh := invite("--life", "1s"), invite()
	i, err := join.ParseToken(short)
	must(t, err)
	time.Sleep(time.Until(i.Expires.Add(time.Millisecond)))
	forged, err := join.ParseToken(fresh)
	must(t, err)
	elsewhere := forged
	forged.Secret[0] ^= 1
	elsewhere.CA[0] ^= 1
	late := i
	late.Expires = time.Now().Add(time.Hour)
	impostor := *north
	impostor.cluster = &cluster{name: "west", id: 3}
	namesake := *north
	namesake.cluster = &cluster{name: "north", id: 2}
	for _, row := range []struct {
		name, token, says string
		by                *joiner
	}{
		{"used by another", used, "used: cluster west used the invitation", north},
		{"used by itself", used, "used: this cluster has joined with this invitation", west},
		{"expired", short, "expired: the invitation ended at", north},
		{"expired, with a later date", late.Token(), "expired: the invitation ended at", north},
		{"a character changed", "cmjoin1-b" + fresh[len("cmjoin1-b"):], "was mistyped", north},
		{"cut off", fresh[:len(fresh)-3], "it was cut off", north},
		{"another secret", forged.Token(), "unknown: there is no such invitation here", north},
		{"another CA", elsewhere.Token(), "the server's CA is not the one in the token", north},
		{"for somebody else", invite("--for", "south"), `not-invited: the invitation is for cluster "south"`, north},
		{"a name that is taken", fresh, `name-taken: cluster "west" is a peer since`, &impostor},
		{"an id that is taken", fresh, `id-taken: cluster id 2 of "north": another peer of "east" has it`, &namesake},
	} {
		_, said, err := command(flags([]string{"join", row.token}, row.by.site(), row.by.home())...)
		if err == nil || !strings.Contains(said, row.says) {
			t.Errorf("%s: error %v, said %q, want %q", row.name, err, said, row.says)
		}
	}
	for _, dir := range []string{north.path("clusters"), north.path("peers")} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			t.Errorf("refused joins left %v in %s", entries, dir)
		}
	}
	if _, err := os.Stat(east.path("peers/north.yaml")); err == nil {
		t.Error("a cluster that was refused may read")
	}
	if code, _, err := accepting.Terminate(stopLimit); err != nil || code != 0 {
		t.Errorf("invite serve ended with %d, %v", code, err)
	}
}

// reader connects to east as west's agents do, with the files in dir.
func reader(ctx context.Context, dir string) (*kvstore.Conn, error) {
	f, _, err := clusterfile.Read(filepath.Join(dir, "east"))
	if err != nil {
		return nil, err
	}
	tls, err := certs.ClientTLS(certs.ClientFiles{Cert: f.CertFile, Key: f.KeyFile, CA: f.TrustedCAFile}, nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return kvstore.Dial(ctx, kvstore.ConnConfig{Endpoints: f.Endpoints, TLS: tls})
}

// checkRenewal: a peer that joins again gets new certificates while it reads, and
// nobody notices.
func (w *world) checkRenewal(t *testing.T, east, west *joiner) {
	conn, err := reader(t.Context(), west.path("clusters"))
	must(t, err)
	defer conn.Close() //nolint:errcheck // nothing was written
	accepting, token := w.acceptor(t, "renew", flags([]string{"invite", "--for", "west", "--address", joinAddress, "--listen", joinAddress}, east.site(), east.home())...)
	before := readFile(west.path("clusters/east.etcd-client.crt"))
	succeed(t, flags([]string{"join", token, "--replace", "--for", "east"}, west.site(), west.home())...)
	if code, err := accepting.Exit(startLimit); err != nil || code != 0 {
		t.Errorf("invite ended with %d, %v: %s", code, err, readLog(accepting))
	}
	if readFile(west.path("clusters/east.etcd-client.crt")) == before {
		t.Error("the certificate is the one of before")
	}
	fresh, err := reader(t.Context(), west.path("clusters"))
	must(t, err)
	must(t, fresh.Close())
	for _, j := range []*joiner{east, west} {
		if s := j.agent.status(t); !s.synced(2) {
			t.Errorf("status of %s: %+v", j.name, s)
		}
	}
	select {
	case <-conn.Done():
		t.Error("the connection of before was closed")
	default:
	}
}

// checkDisconnect: a peer that is disconnected stops reading at once and for
// good, without its help; nothing of it stays; and it may join again.
func (w *world) checkDisconnect(t *testing.T, east, west *joiner) {
	old := west.path("old")
	must(t, os.CopyFS(old, os.DirFS(west.path("clusters"))))
	conn, err := reader(t.Context(), old)
	must(t, err)
	defer conn.Close() //nolint:errcheck // it is closed by the other side
	if got, err := conn.Range(t.Context(), "cilium/state/services/v1/east/", "cilium/state/services/v1/east0", 0, 0); err != nil || len(got.KVs) == 0 {
		t.Fatalf("west reads %d services of east, error %v", len(got.KVs), err)
	}
	begin := time.Now()
	succeed(t, flags([]string{"disconnect", "west", "--dir", east.path("pki")}, east.home())...)
	select {
	case <-conn.Done():
		t.Logf("west's stream was closed %v after the command was given", time.Since(begin))
	case <-time.After(cutLimit):
		t.Errorf("west still reads %v after it was disconnected\n%s", cutLimit, logTail(east.export.Process))
	}
	requireNoReader(t, "a disconnected peer", old)
	east.await(t, west, 0, time.Now())
	if n := west.uses(t, east); n != 2 {
		t.Errorf("west lost %d of 2 backends of east with the contact", 2-n)
	}
	left, err := filepath.Glob(filepath.Join(east.dir, "[pc]*", "west*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("disconnecting left %v", left)
	}
	if _, said, err := command(flags([]string{"disconnect", "west", "--dir", east.path("pki")}, east.home())...); err != nil || !strings.Contains(said, "nothing is left of west") {
		t.Errorf("disconnecting again: %v, said %q", err, said)
	}
	succeed(t, flags([]string{"disconnect", "east", "--dir", west.path("pki")}, west.home())...)
	w.connect(t, "again", east, west)
	requireNoReader(t, "the certificate of before", old)
	begin = time.Now()
	for !strings.Contains(readLog(east.export.Process), "reason=revoked") { // it logs after it has answered
		if time.Since(begin) > startLimit {
			t.Fatalf("the apiserver did not refuse it as revoked:\n%s", logTail(east.export.Process))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func requireNoReader(t *testing.T, who, dir string) {
	t.Helper()
	conn, err := reader(t.Context(), dir)
	if err == nil {
		_, err = conn.Range(t.Context(), "cilium/state/services/v1/east/", "cilium/state/services/v1/east0", 0, 0)
		conn.Close() //nolint:errcheck // it should not be open
	}
	if err == nil {
		t.Errorf("%s reads", who)
		return
	}
	t.Logf("%s is told: %v", who, err)
}
