package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
)

// The groups below run side by side; each breaks parts that no other breaks.

// network: east's agent and the way to west.
func (a *alerting) network(t *testing.T) {
	east := at(a.east.agent.http) + `, cluster="west"`
	a.fires(t, "ClustermeshNoHeartbeat", east) // at this pace, between any two heartbeats
	synced := `clustermesh_agent_cluster_syncs_total{cluster="west"}`
	file := readFile(a.east.path("clusters/west"))
	for i := range 9 { // each change of the file is another connection
		before := readMetric(t, a.east.agent.http, synced)
		a.east.agent.setCluster(t, "west", fmt.Sprintf("%s# %d\n", file, i))
		awaitMetric(t, a.east.agent.http, synced, func(v float64) bool { return v > before })
		time.Sleep(500 * time.Millisecond) // a scrape sees it
	}
	a.fires(t, "ClustermeshClusterFlaps", east)
	a.clears(t, "ClustermeshNoHeartbeat", east)
	a.clears(t, "ClustermeshClusterFlaps", east)

	mendPath, mendControl := a.cutPath(t), a.cutControl(t, "drop")
	a.fires(t, "ClustermeshClusterDead", east)
	a.fires(t, "ClustermeshDataPathFails", east)
	mendPath()
	mendControl()
	a.clears(t, "ClustermeshClusterDead", east)
	a.clears(t, "ClustermeshDataPathFails", east)

	a.west.export.Kill()
	a.fires(t, "ClustermeshApiserverDown", at(a.west.export.http))
	a.fires(t, "ClustermeshClusterOutOfContact", east)
	a.west.export.up(t)
	a.clears(t, "ClustermeshApiserverDown", at(a.west.export.http))
	a.clears(t, "ClustermeshClusterOutOfContact", east)
}

// records: what clusters say, and what becomes of it.
func (a *alerting) records(t *testing.T) {
	stop := a.callInVain(t)
	dir := a.east.path("examples/east")
	service := manifest("rebel-empty", "10.96.0.90", "10.1.0.99")
	service, _, _ = strings.Cut(service, "---")
	wrong := strings.Replace(manifest("rebel-wrong", "10.96.0.91", "10.1.0.98"), `"true"}`, `"true", clustermesh.io/weights: "nonsense"}`, 1)
	name := strings.Replace(manifest("rebel-name", "10.96.0.92", "10.1.0.97"), "clusterIP:", "type: ExternalName\n  externalName: example.com\n  clusterIP:", 1)
	remove := put(t, dir, service+"---\n"+wrong+"---\n"+name)
	a.fires(t, "ClustermeshConnectionsRefused", at(a.east.agent.http))
	a.fires(t, "ClustermeshAnnotationsNotFollowed", at(a.east.agent.http))
	a.fires(t, "ClustermeshExportProblems", at(a.east.export.http))
	stop()
	remove()
	for _, alert := range []string{"ClustermeshConnectionsRefused", "ClustermeshAnnotationsNotFollowed"} {
		a.clears(t, alert, at(a.east.agent.http))
	}
	a.clears(t, "ClustermeshExportProblems", at(a.east.export.http))

	// East claims an address that nobody may have; west's agent refuses it.
	west := at(a.west.agent.http) + `, cluster="east", reason="address"`
	again := repeat(t, time.Second, func(i int) error {
		addresses := fmt.Sprintf(`127.0.0.%d"], conditions: {ready: true}}, {addresses: ["10.1.16.11`, i%200+1)
		return rewrite(filepath.Join(dir, "more.yaml"), manifest("rebel-base", "10.96.0.20", addresses))
	})
	a.fires(t, "ClustermeshRecordsRefused", west)
	again()
	must(t, os.Remove(filepath.Join(dir, "more.yaml")))
	a.clears(t, "ClustermeshRecordsRefused", west)
}

// brake: east withdraws everything, and west does not believe it.
func (a *alerting) brake(t *testing.T) {
	_, _, err := a.west.agent.Terminate(stopLimit)
	must(t, err)
	a.west.agent.more = []string{"--withdrawal-brake-percent", "50"}
	a.west.agent.restart(t)
	a.west.await(t, a.east, 2, time.Now())
	a.west.awaitStatus(t, time.Now())
	held := at(a.west.agent.http) + `, cluster="east"`
	file := a.east.path("examples/east/rebel-base.yaml")
	all := readFile(file)
	services := slices.DeleteFunc(strings.Split(all, "---\n"), func(d string) bool { return strings.Contains(d, "kind: EndpointSlice") })
	replace(t, file, strings.Join(services, "---\n"))
	a.fires(t, "ClustermeshBrakeHolds", held)
	succeed(t, "release", "east", "--api-socket", a.west.agent.socket)
	a.clears(t, "ClustermeshBrakeHolds", held)
	replace(t, file, all)
}

// replace writes a file in one step.
func replace(t *testing.T, path, text string) {
	t.Helper()
	must(t, rewrite(path, text))
}

// node: the agent with the small maps.
func (a *alerting) node(t *testing.T) {
	page, pki := at(a.tiny.http), a.east.path("pki")
	a.fires(t, "ClustermeshAgentNotReady", page)
	a.tiny.setCluster(t, "broken", "endpoints: [nonsense]\n")
	own := etcdConfig("https://"+a.east.export.listen, pki+"/ca.crt", pki+"/local-east.crt", pki+"/local-east.key")
	a.tiny.setCluster(t, "east", own)
	a.clears(t, "ClustermeshAgentNotReady", page)

	var many []string
	for i := range 12 {
		many = append(many, manifest(fmt.Sprintf("rebel-many-%d", i), fmt.Sprintf("10.96.9.%d", i+1), "10.1.0.90"))
	}
	crowd := filepath.Join(a.east.path("examples/east"), "many.yaml")
	must(t, os.WriteFile(crowd, []byte(strings.Join(many, "---\n")), 0o600))
	a.fires(t, "ClustermeshClusterFileRefused", page)
	a.fires(t, "ClustermeshServicesNotProgrammed", page)
	a.fires(t, "ClustermeshMapsNearlyFull", page)
	a.fires(t, "ClustermeshMapsBehind", page+`, cluster="east"`) // as long as they lack something that it says
	must(t, os.Remove(crowd))
	a.tiny.removeCluster(t, "broken")
	a.clears(t, "ClustermeshClusterFileRefused", page)
	a.clears(t, "ClustermeshServicesNotProgrammed", page)
	a.clears(t, "ClustermeshMapsNearlyFull", page)
	a.clears(t, "ClustermeshMapsBehind", page+`, cluster="east"`)
	a.pins(t, page)

	a.tiny.Kill()
	a.fires(t, "ClustermeshAgentDown", page)
	a.tiny.restart(t)
	a.clears(t, "ClustermeshAgentDown", page)
}

// pins: somebody removes what the agent has pinned, and puts something else there.
func (a *alerting) pins(t *testing.T, page string) {
	pins, err := os.ReadDir(a.tiny.pins)
	must(t, err)
	for _, p := range pins[:6] {
		must(t, os.Remove(filepath.Join(a.tiny.pins, p.Name())))
	}
	a.fires(t, "ClustermeshPinsRepaired", page)
	place := filepath.Join(a.tiny.pins, pins[0].Name())
	must(t, os.Remove(place))
	must(t, os.MkdirAll(filepath.Join(place, "taken"), 0o700))
	a.fires(t, "ClustermeshPinsBroken", page)
	must(t, os.Remove(filepath.Join(place, "taken")))
	a.clears(t, "ClustermeshPinsBroken", page)
	a.clears(t, "ClustermeshPinsRepaired", page)
}

// apiserver: east's, what it reads and who reads from it.
func (a *alerting) apiserver(t *testing.T) {
	page, pki := at(a.east.export.http), a.east.path("pki")
	bad := filepath.Join(a.east.path("peers"), "bad.yaml")
	must(t, os.WriteFile(bad, []byte("identity: nobody\n"), 0o600))
	source := filepath.Join(a.east.path("examples/east"), "bad.yaml")
	must(t, os.WriteFile(source, []byte("kind: [\n"), 0o600))
	soon := filepath.Join(a.w.dir, "soon")
	must(t, os.CopyFS(soon, os.DirFS(pki)))
	succeed(t, "certs", "issue", "--dir", soon, "--kind", "server", "--cluster", "east", "--host", "127.0.0.1", "--validity", "1m")
	kept := filepath.Join(a.w.dir, "kept")
	must(t, os.CopyFS(kept, os.DirFS(pki)))
	for _, file := range []string{"server-east.crt", "server-east.key"} {
		must(t, os.Rename(filepath.Join(soon, file), filepath.Join(pki, file)))
	}
	a.knock(t, 5)
	leave := repeat(t, 2*time.Millisecond, a.mumble)
	a.fires(t, "ClustermeshPeersRefused", page+`, peer="other"`)
	leave()
	a.fires(t, "ClustermeshPeerFileRefused", page)
	a.fires(t, "ClustermeshSourceProblems", page)
	a.fires(t, "ClustermeshCertificateExpires", page+`, certificate="server"`)
	must(t, os.Remove(bad))
	must(t, os.Remove(source))
	for _, file := range []string{"server-east.crt", "server-east.key"} {
		must(t, os.Rename(filepath.Join(kept, file), filepath.Join(pki, file)))
	}
	a.clears(t, "ClustermeshPeersRefused", page+`, peer="other"`)
	a.clears(t, "ClustermeshPeerFileRefused", page)
	a.clears(t, "ClustermeshSourceProblems", page)
	a.clears(t, "ClustermeshCertificateExpires", page+`, certificate="server"`)
}

// knock connects to east's apiserver n times with a certificate of another CA.
func (a *alerting) knock(t *testing.T, n int) {
	theirs, err := tls.LoadX509KeyPair(filepath.Join(a.pki, "remote-east.crt"), filepath.Join(a.pki, "remote-east.key"))
	must(t, err)
	config := &tls.Config{Certificates: []tls.Certificate{theirs}, InsecureSkipVerify: true, NextProtos: []string{"h2"}} //nolint:gosec // it is to be refused
	for range n {
		dialer := &net.Dialer{Timeout: time.Second}
		if conn, err := tls.DialWithDialer(dialer, "tcp", a.east.export.listen, config); err == nil {
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, _ = conn.Read(make([]byte, 1)) // until it is refused
			_ = conn.Close()
		}
	}
}

// mumble connects to east's apiserver and does not speak TLS, which costs it little.
func (a *alerting) mumble(int) error {
	conn, err := net.DialTimeout("tcp", a.east.export.listen, alertLimit)
	if err != nil {
		return err
	}
	_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = conn.Read(make([]byte, 1)) // until it is refused
	return conn.Close()
}

// store: south's apiserver: nobody reads from it, it cannot renew its certificate,
// it has another cluster's id, and its disk goes away.
func (a *alerting) store(t *testing.T) {
	page := at(a.south.http)
	a.fires(t, "ClustermeshCertificateNotRenewed", page)
	a.fires(t, "ClustermeshNobodyImports", page)
	ca, cert, key := a.pki+"/ca.crt", a.pki+"/remote-east.crt", a.pki+"/remote-east.key"
	config, err := certs.ClientTLS(certs.ClientFiles{Cert: cert, Key: key, CA: ca}, nil)
	must(t, err)
	conn, err := kvstore.Dial(t.Context(), kvstore.ConnConfig{Endpoints: []string{"https://" + a.south.listen}, TLS: config})
	must(t, err)
	a.clears(t, "ClustermeshNobodyImports", page)
	must(t, conn.Close())

	refused := at(a.tiny.http) + `, cluster="south"`
	awaitFile(t, filepath.Join(a.tiny.clusters, "east")) // the own cluster comes first
	a.tiny.setCluster(t, "south", etcdConfig("https://"+a.south.listen, ca, cert, key))
	a.fires(t, "ClustermeshClusterRefused", refused)
	a.south.Kill()
	must(t, os.Rename(filepath.Join(filepath.Dir(a.pki), "ca.key"), filepath.Join(a.pki, "ca.key")))
	a.south.args[3] = "3"
	a.south.up(t)
	a.clears(t, "ClustermeshClusterRefused", refused)
	a.clears(t, "ClustermeshCertificateNotRenewed", page)
	a.sourceless(t, page)

	lives := readMetric(t, a.south.http, "clustermesh_store_lives_total")
	must(t, os.Rename(a.south.dataDir, a.south.dataDir+".away"))
	must(t, os.WriteFile(a.south.dataDir, nil, 0o600))
	awaitMetric(t, a.south.http, "clustermesh_store_lives_total", func(v float64) bool { return v >= lives+2 })
	must(t, os.Remove(a.south.dataDir))
	a.fires(t, "ClustermeshStoreRebuilt", page)
	a.clears(t, "ClustermeshStoreRebuilt", page)
}

// sourceless: for as long as it takes, south's apiserver has an API server that does
// not answer in place of its manifests.
func (a *alerting) sourceless(t *testing.T, page string) {
	nobody := a.w.site("south", "kubeconfig")
	must(t, os.WriteFile(nobody, []byte(`{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}], contexts: [{name: c, context: {cluster: c}}], current-context: c}`), 0o600))
	read := slices.Clone(a.south.args)
	source := a.south.args[4:6]
	a.south.Kill()
	source[0], source[1] = "--kubeconfig", nobody
	a.south.start(t)
	a.fires(t, "ClustermeshApiserverNotReady", page)
	a.south.Kill()
	a.south.args = read
	a.south.up(t)
	a.clears(t, "ClustermeshApiserverNotReady", page)
}

// awaitMetric waits until a part's metric is as wanted.
func awaitMetric(t *testing.T, address, name string, ok func(float64) bool) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for v := readMetric(t, address, name); !ok(v); v = readMetric(t, address, name) {
		if time.Now().After(deadline) {
			t.Fatalf("%s of %s is %v after %v", name, address, v, giveUp)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func awaitFile(t *testing.T, path string) {
	t.Helper()
	deadline := time.Now().Add(alertLimit)
	for _, err := os.Stat(path); err != nil; _, err = os.Stat(path) {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
