package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

const (
	northID      = 4
	northMax     = 511       // clusters, which halves each one's numbers of identities
	northQuota   = 32 << 20  // bytes of the store
	northRoom    = "size=8m" // for its journal of identities
	pastLabels   = 29400     // sets of labels that pods of north had within the hour
	presentPods  = 200       // pods with labels of their own
	idleReaders  = 8
	buildLimit   = 5 * time.Minute // for a build from nothing, on a busy machine
	stopFor      = 180 * time.Millisecond
	runFor       = 60 * time.Millisecond
	busyEvery    = 40 * time.Millisecond
	manyBackends = 170 // whose table of consistent hashing has the largest size
	fatBytes     = 300_000
)

// buildWithCgo begins to build an agent that cannot give up its capabilities.
func (a *alerting) buildWithCgo(t *testing.T) {
	a.built = make(chan error, 1)
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", a.withCgo(), "../cmd/clustermesh-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	go func() {
		out, err := build.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("build an agent with cgo: %w: %s", err, out)
		}
		a.built <- err
	}()
}

func (a *alerting) withCgo() string { return filepath.Join(a.w.dir, "agent-with-cgo") }

// newNorth starts a cluster whose pods had many different labels within the hour,
// with little room for the journal of them, and prepares an agent of it.
func (a *alerting) newNorth(t *testing.T) {
	a.north = a.newSite(t, "north", northID, "--max-connected-clusters", fmt.Sprint(northMax), "--quota-backend-bytes", fmt.Sprint(northQuota))
	must(t, os.MkdirAll(a.identities(""), 0o700))
	must(t, unix.Mount("tmpfs", a.identities(""), "tmpfs", 0, northRoom))
	t.Cleanup(func() { must(t, unix.Unmount(a.identities(""), unix.MNT_DETACH)) })
	first, _ := schema.IdentityRange(northID, northMax)
	var past []identity.Entry
	for i := range uint32(pastLabels) {
		labels := fmt.Sprintf("k8s:io.kubernetes.pod.namespace=rebels;k8s:run=%d;", i)
		past = append(past, identity.Entry{Number: first + 1 + i, Released: time.Now().Unix() - 60, Labels: labels})
	}
	must(t, os.WriteFile(a.identities("journal"), identity.Encode(past), 0o600))
	n := &node{name: "north-n1", cluster: &cluster{name: "north", id: northID}}
	var err error
	n.lab, err = a.w.lab.AddNode(n.name, prefixes("192.168.50.40/24"), prefixes("10.4.16.0/20"))
	must(t, err)
	a.northSays(t, "home", home+"---\n"+strings.Replace(nodeManifest(n.lab.Addr(true)), "n1", n.name, 1)+"---\n"+slice("rebel-many", 64, manyBackends))
	a.north.up(t)
	a.spare = a.w.newAgent(t, n, 14)
	a.spare.more = []string{"--max-connected-clusters", fmt.Sprint(northMax)}
	pki := a.w.site("north", "pki")
	a.spare.setCluster(t, "north", etcdConfig("https://"+a.north.listen, pki+"/ca.crt", pki+"/local-north.crt", pki+"/local-north.key"))
}

// identities is the path of a file beside north's journal.
func (a *alerting) identities(name string) string {
	return filepath.Join(a.north.dataDir, "identities", name)
}

// northSays writes one of north's manifests.
func (a *alerting) northSays(t *testing.T, name, text string) {
	t.Helper()
	must(t, rewrite(a.w.site("north", "manifests/"+name+".yaml"), text))
}

// slice is an EndpointSlice of n backends of north, from 10.4.<third>.1 on.
func slice(service string, third, n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("10.4.%d.%d", third+i/250, i%250+1))
	}
	_, text, _ := strings.Cut(manifest(service, "", strings.Join(all, `"], conditions: {ready: true}}, {addresses: ["`)), "---\n")
	return text
}

// consistent is a consistent service whose other backends [slice] has; the one that
// is here is changed with n, and with it the table of all.
func consistent(name, ip string, n int) string {
	text := strings.Replace(manifest(name, ip, fmt.Sprintf("10.4.20.%d", n%200+1)), `"true"}`, `"true", clustermesh.io/consistent: "true"}`, 1)
	return strings.Replace(text, name+"-1", name+"-2", 1)
}

// crowd: north has more than it can take: labels, changes, readers that do not
// read, and bytes. Its agent has little processor time and too many rights.
func (a *alerting) crowd(t *testing.T) {
	page, node := at(a.north.http), at(a.spare.http)
	a.awaitScraped(t, page)
	calm := a.keepBusy(t)
	leave := a.idle(t)
	a.labels(t, page)
	a.startWithCgo(t)
	ease := a.takeTime(t)
	a.fires(t, "ClustermeshUpdatesSlow", node)
	ease()
	calm() // where all are busy these changes may be slow by themselves
	a.fires(t, "ClustermeshCapabilitiesHeld", node)
	a.clears(t, "ClustermeshUpdatesSlow", node)
	a.spare.Kill()
	calm = a.keepBusy(t)
	a.fires(t, "ClustermeshReadersCutOff", page+`, reason="unread"`)
	a.fires(t, "ClustermeshWatchLags", page)
	calm()
	empty := a.fill(t)
	a.fires(t, "ClustermeshStoreNearQuota", page)
	a.fires(t, "ClustermeshNodesSilent", page+`, state="silent"`)
	a.clears(t, "ClustermeshIdentitiesNotKept", page)

	leave()
	empty()
	a.spare.program = ""
	a.spare.restart(t)
	a.clears(t, "ClustermeshCapabilitiesHeld", node)
	a.clears(t, "ClustermeshNodesSilent", page+`, state="silent"`)
	a.clears(t, "ClustermeshWatchLags", page)
	_, _, err := a.north.Terminate(stopLimit)
	must(t, err)
	a.passHour(t)
	a.north.up(t)
	a.clears(t, "ClustermeshStoreNearQuota", page)
	a.clears(t, "ClustermeshIdentitiesNearLimit", page)
	a.clears(t, "ClustermeshReadersCutOff", page+`, reason="unread"`)
}

// awaitScraped waits until Prometheus has seen a part run.
func (a *alerting) awaitScraped(t *testing.T, page string) {
	t.Helper()
	deadline := time.Now().Add(alertLimit)
	for n := 0; n == 0; time.Sleep(100 * time.Millisecond) {
		var err error
		n, err = seriesOf("up{" + page + "} == 1")
		must(t, err)
		if time.Now().After(deadline) {
			t.Fatalf("Prometheus does not see %s", page)
		}
	}
}

// keepBusy has north change a backend of many all the time.
func (a *alerting) keepBusy(t *testing.T) (stop func()) {
	return repeat(t, busyEvery, func(i int) error {
		return rewrite(a.w.site("north", "manifests/busy.yaml"), consistent("rebel-many", "10.100.0.20", i))
	})
}

// idle has agents of another cluster ask for everything that north's services have
// become, and read nothing of it. Those that are cut off come back.
func (a *alerting) idle(t *testing.T) (stop func()) {
	t.Helper()
	pki := a.w.site("north", "pki")
	config, err := certs.ClientTLS(certs.ClientFiles{Cert: pki + "/remote-east.crt", Key: pki + "/remote-east.key", CA: pki + "/ca.crt"}, nil)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range idleReaders {
		all.Go(func() {
			for ctx.Err() == nil {
				if conn, err := kvstore.Dial(ctx, kvstore.ConnConfig{Endpoints: []string{"https://" + a.north.listen}, TLS: config}); err == nil {
					readNothing(ctx, conn)
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	t.Cleanup(stop)
	return stop
}

// readNothing watches from the first revision on until the connection is cut.
func readNothing(ctx context.Context, conn *kvstore.Conn) {
	defer conn.Close() //nolint:errcheck // nothing was written
	services := schema.WatchPrefix(schema.KindService, "north", false)
	_ = conn.Watch(ctx, services, services+"\xff", 1, func(kvstore.Changes) error {
		select {
		case <-conn.Done():
		case <-ctx.Done():
		}
		return context.Canceled
	})
}

// labels: the disk of the journal is full, and each pod has labels of its own.
func (a *alerting) labels(t *testing.T, page string) {
	filler, err := os.Create(a.identities("filler"))
	must(t, err)
	for err = nil; err == nil; {
		_, err = filler.Write(make([]byte, 4096))
	}
	must(t, filler.Close())
	var pods []string
	for i := range presentPods {
		pods = append(pods, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: crew-%d, namespace: rebels, labels: {crew: \"%d\"}}\nstatus: {phase: Running, podIP: 10.4.18.%d}\n", i, i, i+1))
	}
	a.northSays(t, "crew", strings.Join(pods, "---\n"))
	a.fires(t, "ClustermeshIdentitiesNotKept", page)
	must(t, os.Remove(filler.Name()))
	a.fires(t, "ClustermeshIdentitiesNearLimit", page)
}

// passHour has an hour pass for the numbers at rest that north's journal holds.
func (a *alerting) passHour(t *testing.T) {
	entries, bad := identity.Decode([]byte(readFile(a.identities("journal"))))
	if len(entries) < pastLabels {
		t.Fatalf("the journal has %d entries and %d bad lines", len(entries), bad)
	}
	for i := range entries {
		if entries[i].Released > 0 {
			entries[i].Released -= identity.DefaultQuarantine
		}
	}
	must(t, os.WriteFile(a.identities("journal"), identity.Encode(entries), 0o600))
}

// startWithCgo starts north's agent in a binary that keeps its capabilities.
func (a *alerting) startWithCgo(t *testing.T) {
	select {
	case err := <-a.built:
		must(t, err)
	case <-time.After(buildLimit):
		t.Fatalf("an agent with cgo is not built after %v", buildLimit)
	}
	a.spare.program = a.withCgo()
	a.spare.start(t)
	await(t, a.spare.Process, a.spare.http, "/readyz")
}

// takeTime leaves north's agent a quarter of the time, until ease.
func (a *alerting) takeTime(t *testing.T) (ease func()) {
	return repeat(t, runFor, func(int) error {
		if err := syscall.Kill(a.spare.PID(), syscall.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(stopFor)
		return syscall.Kill(a.spare.PID(), syscall.SIGCONT)
	})
}

// fill has north export until its store is nearly full, which changes alone do not
// do, and returns how to take that back. What was written and is not exported yet
// does not count: on a slow machine that could be more than the store has room for,
// and a store that is beyond its quota is rebuilt again and again.
func (a *alerting) fill(t *testing.T) (empty func()) {
	store := func(name string) float64 { return readMetric(t, a.north.http, "clustermesh_"+name) }
	exported := func() float64 {
		return store(`publisher_operations_total{kind="services",op="put"}`)
	}
	deadline, n := time.Now().Add(alertLimit), 0
	for ; store("store_size_bytes") < 0.84*store("store_quota_bytes"); n++ {
		before := exported()
		a.northSays(t, fmt.Sprintf("fat-%d", n), fat(fmt.Sprintf("rebel-fat-%d", n), fmt.Sprintf("10.100.1.%d", n+1)))
		for exported() == before {
			if time.Now().After(deadline) {
				t.Fatalf("north's store has %v bytes, and large service %d is not in it", store("store_size_bytes"), n)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return func() {
		for i := range n {
			must(t, os.Remove(a.w.site("north", fmt.Sprintf("manifests/fat-%d.yaml", i))))
		}
	}
}

// fat is a service with a large label.
func fat(name, ip string) string {
	label := "namespace: rebels\n  labels: {story: \"" + strings.Repeat("x", fatBytes) + "\"}\n"
	return strings.Replace(manifest(name, ip, "10.4.20.1"), "namespace: rebels\n", label, 1)
}
