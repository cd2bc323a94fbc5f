package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"clustermesh-apiserver": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit":      exitCode,
			"waitready": waitReady,
			"terminate": terminate,
		},
	})
}

// setup gives each script certificates, as files and as a mounted secret, and
// three free ports.
func setup(env *testscript.Env) error {
	pki := filepath.Join(env.WorkDir, "pki")
	if err := certs.InitCA(pki, certs.CAOptions{}); err != nil {
		return err
	}
	f, err := certs.Issue(pki, certs.IssueRequest{Kind: certs.Server, Cluster: "east", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		return err
	}
	env.Setenv("TLS", fmt.Sprintf("--tls-cert=%s --tls-key=%s --tls-client-ca=%s", f.Cert, f.Key, f.CA))
	env.Setenv("CERT", f.Cert)
	env.Setenv("KEY", f.Key)
	env.Setenv("CA", f.CA)
	if err := writeSecret(env, f); err != nil {
		return err
	}
	for _, name := range []string{"LISTEN", "HTTP", "HEALTH"} {
		address, err := freeAddress()
		if err != nil {
			return err
		}
		env.Setenv(name, address)
	}
	return nil
}

// writeSecret lays the files out as a mounted TLS secret.
func writeSecret(env *testscript.Env, f certs.Files) error {
	dir := filepath.Join(env.WorkDir, "secret")
	env.Setenv("TLSDIR", dir)
	err := os.Mkdir(dir, 0o700)
	for name, from := range map[string]string{"tls.crt": f.Cert, "tls.key": f.Key, "ca.crt": f.CA} {
		if err == nil {
			err = os.Symlink(from, filepath.Join(dir, name))
		}
	}
	return err
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// exitCode runs a command and checks its exit code: exit 2 command args...
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit code command args...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if e, ok := err.(*exec.ExitError); ok {
		code = e.ExitCode()
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s: %v", code, args[0], err)
	}
}

// terminate sends SIGTERM to the commands in the background.
func terminate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: terminate")
	}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(syscall.SIGTERM))
	}
}

// waitReady waits until /readyz at an address answers 200.
func waitReady(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitready address")
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		reply, err := http.Get("http://" + args[0] + "/readyz")
		if err != nil {
			continue
		}
		reply.Body.Close() //nolint:errcheck // not read
		if reply.StatusCode == http.StatusOK {
			return
		}
	}
	ts.Fatalf("%s was never ready", args[0])
}
