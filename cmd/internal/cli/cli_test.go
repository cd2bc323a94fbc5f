package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// command is a daemon with four flags; it runs ran when everything is fine.
type command struct {
	name  string
	count uint32
	quiet bool
	deny  []string
	ran   bool
	fail  error
}

func (c *command) cobra() *cobra.Command {
	cmd := &cobra.Command{Use: "daemon", RunE: func(*cobra.Command, []string) error { c.ran = true; return c.fail }}
	cmd.Flags().StringVar(&c.name, "cluster-name", "", "a name")
	cmd.Flags().Uint32Var(&c.count, "cluster-id", 1, "a number")
	cmd.Flags().BoolVar(&c.quiet, "quiet", false, "a switch")
	cmd.Flags().StringSliceVar(&c.deny, "deny", nil, "a list")
	return Prepare(cmd, func() error {
		if c.name == "" {
			return errors.New("--cluster-name: not set")
		}
		return nil
	})
}

func (c *command) main(args ...string) (code int, stderr string) {
	var out, err bytes.Buffer
	code = Main(c.cobra(), args, &out, &err)
	return code, err.String()
}

func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("cluster-name: file\ncluster-id: 7\nquiet: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CLUSTERMESH_CONFIG", file)
	t.Setenv("CLUSTERMESH_CLUSTER_ID", "8")
	c := &command{}
	if code, stderr := c.main("--cluster-name=line"); code != ExitOK || !c.ran {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if c.name != "line" || c.count != 8 || !c.quiet {
		t.Errorf("name %q, count %d, quiet %v; want line, environment, file", c.name, c.count, c.quiet)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("cluster-nam: typo\nquiet: perhaps\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &command{}
	code, stderr := c.main("--config", file, "--cluster-id", "many")
	if code != ExitUsage || c.ran {
		t.Fatalf("exit %d, ran %v", code, c.ran)
	}
	for _, want := range []string{`--cluster-id "many"`, `member "cluster-nam"`, `quiet "perhaps"`, "--cluster-name: not set", "daemon --help"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, stderr)
		}
	}
}

// TestMembersWithoutValue: a flag that restricts would not be given.
func TestMembersWithoutValue(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("cluster-name: a\ndeny:\n# - 10.0.0.0/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &command{}
	if code, stderr := c.main("--config", file); code != ExitUsage || c.ran || !strings.Contains(stderr, `member "deny" has no value`) {
		t.Errorf("exit %d, ran %v: %s", code, c.ran, stderr)
	}
}

// TestMembersInTwoCases: one of them would win by chance.
func TestMembersInTwoCases(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("cluster-name: a\nCLUSTER-NAME: b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &command{}
	if code, stderr := c.main("--config", file); code != ExitUsage || c.ran || !strings.Contains(stderr, `members "CLUSTER-NAME" and "cluster-name" are the same`) {
		t.Errorf("exit %d, ran %v: %s", code, c.ran, stderr)
	}
}

// TestListsOfTheFile: what restricts must not vanish because of how it is
// written.
func TestListsOfTheFile(t *testing.T) {
	for content, want := range map[string]string{
		"deny: [a, b]": "a b", "deny: a,b": "a b", "deny: [7]": "7", "deny: []": "", "quiet: true": "",
		"deny: {a: b}": `deny "map[a:b]"`, "deny: [{a: b}]": `deny "[`, "deny: [[a]]": `deny "[[a]]"`, "cluster-name: [a]": `cluster-name "[a]"`, "cluster-id: {a: 1}": `cluster-id "map[a:1]"`,
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &command{}
		code, stderr := c.main("--config", file, "--cluster-name=x")
		if strings.HasPrefix(content, "cluster-name") {
			c = &command{}
			code, stderr = c.main("--config", file)
		}
		if bad := strings.Contains(want, `"`); bad != (code == ExitUsage) || bad && !strings.Contains(stderr, want) || !bad && strings.Join(c.deny, " ") != want {
			t.Errorf("%s: exit %d, deny %q, want %q: %s", content, code, c.deny, want, stderr)
		}
	}
}

// TestListsOfTheEnvironment are written with commas, as on the command line; an
// empty variable is none.
func TestListsOfTheEnvironment(t *testing.T) {
	t.Setenv("CLUSTERMESH_DENY", "192.0.2.0/24,2001:db8::/32")
	t.Setenv("CLUSTERMESH_CLUSTER_ID", "")
	c := &command{}
	if code, stderr := c.main("--cluster-name=a"); code != ExitOK || strings.Join(c.deny, " ") != "192.0.2.0/24 2001:db8::/32" || c.count != 1 {
		t.Errorf("exit %d, deny %q, count %d: %s", code, c.deny, c.count, stderr)
	}
	if code, stderr := c.main("--cluster-name=a", "--deny=x", "--deny=y,z"); code != ExitOK || strings.Join(c.deny, " ") != "x y z" {
		t.Errorf("exit %d, deny %q: %s", code, c.deny, stderr)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"--no-such-flag"}, {"word"}, {"--config", "/does/not/exist", "--cluster-name=a"}} {
		c := &command{}
		if code, stderr := c.main(args...); code != ExitUsage || c.ran || stderr == "" {
			t.Errorf("%q: exit %d, ran %v: %s", args, code, c.ran, stderr)
		}
	}
}

func TestFailureIsNotUsage(t *testing.T) {
	c := &command{fail: errors.New("disk is full")}
	if code, stderr := c.main("--cluster-name=a"); code != ExitFailed || !strings.Contains(stderr, "disk is full") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
