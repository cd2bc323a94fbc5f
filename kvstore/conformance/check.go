package conformance

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize/english"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Outcome is how a check ended.
type Outcome string

// The outcomes of a check. A skipped one says nothing: something it builds on
// did not pass, it was not asked for, or there was nothing to look at.
const (
	Pass Outcome = "pass"
	Fail Outcome = "fail"
	Skip Outcome = "skip"
)

// Check is one thing a client relies on.
type Check struct {
	ID     string   // stable, lower case with dashes
	Group  string   // what it is about, such as "tls"
	Title  string   // what must hold
	Why    string   // what a Cilium client does when it does not
	Remedy string   // what an operator can do then
	Needs  []string // checks that must have passed before; each comes earlier

	run func(context.Context, *session) finding
}

// Result is the outcome of one check at one target. Evidence is what was seen,
// or why the check was skipped; Cause, which is what is wrong, and Remedy are set
// if it failed. All are printable and short, whatever the server wrote.
type Result struct {
	Check    Check
	Outcome  Outcome
	Cause    string
	Evidence string
	Remedy   string
}

// Target is one endpoint of one cluster, and who asks.
type Target struct {
	// Cluster is the name by which clients know the cluster: that of its file.
	Cluster string
	// Endpoint is https://host:port.
	Endpoint string
	// HostAliases gives the addresses of hosts that are not looked up in DNS.
	HostAliases map[string][]netip.Addr
	// CertFile, KeyFile and CAFile are the client's PEM files.
	CertFile, KeyFile, CAFile string
}

// Validate checks the endpoint's form and that a cluster is named.
func (t Target) Validate() error {
	if t.Cluster == "" {
		return fmt.Errorf("check target %q: the cluster's name is not set; give the name it gives itself", t.Endpoint)
	}
	u, err := url.Parse(t.Endpoint)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("check target: endpoint %q is not of the form https://host:port", t.Endpoint)
	}
	return nil
}

// Options say what a run compares with and how long it takes. The zero value is
// a run of a few seconds without [Options].Wait and ProbeWrites.
type Options struct {
	// OwnID is the id of the cluster that asks; 0 is unknown.
	OwnID uint32
	// MaxClusters is the largest cluster id of the cluster that asks, 255 or
	// 511; 0 is what the target announces.
	MaxClusters uint32
	// Timeout bounds each request; default 5 s.
	Timeout time.Duration
	// Wait adds the checks that take minutes: that heartbeats arrive, that pings
	// are tolerated, and that a watch stays open as long.
	Wait bool
	// HeartbeatWait is how long a client does without a heartbeat; default 2
	// minutes. PingInterval is how often it pings an idle connection; default
	// 15 s.
	HeartbeatWait, PingInterval time.Duration
	// ProbeWrites also asks for writes, in forms that have no effect even where
	// they are allowed: a put that keeps the value of a key that does not exist,
	// a deletion of such a key, a transaction whose condition cannot hold, and a
	// lease longer than any server grants.
	ProbeWrites bool
	// OnCheck, if set, is called with the check that begins.
	OnCheck func(Check)
	// OnSeen, if set, is called at the end with what is to be compared with other
	// clusters, see [Together].
	OnSeen func(Seen)
	// OnResult, if set, is called with each result as soon as it is known.
	OnResult func(Result)
}

func (o Options) withDefaults() Options {
	o.Timeout = cmp.Or(o.Timeout, 5*time.Second)
	o.HeartbeatWait = cmp.Or(o.HeartbeatWait, 2*time.Minute)
	o.PingInterval = cmp.Or(o.PingInterval, 15*time.Second)
	return o
}

// Checks returns all checks in the order in which they run. The slice is the
// caller's.
func Checks() []Check {
	var all []Check
	for _, group := range [][]Check{
		networkChecks(), credentialChecks(), tlsChecks(), accessChecks(), configChecks(), readChecks(), denyChecks(), writeChecks(), pageChecks(), watchChecks(),
		pingChecks(), livenessChecks(), canaryChecks(), dataChecks(), headerChecks(), agentChecks(),
	} {
		all = append(all, group...)
	}
	return all
}

// Run makes all checks against the target and returns one result for each, in
// their order. When ctx ends, the rest is skipped. It writes nothing, and leaves
// no connection and no goroutine behind.
func Run(ctx context.Context, t Target, o Options) []Result {
	s := newSession(t, o.withDefaults())
	defer s.close()
	outcomes := map[string]Outcome{}
	var results []Result
	for _, c := range Checks() {
		if o.OnCheck != nil {
			o.OnCheck(c)
		}
		r := s.result(c, s.attempt(ctx, c, outcomes))
		outcomes[c.ID] = r.Outcome
		results = append(results, r)
		if o.OnResult != nil {
			o.OnResult(r)
		}
	}
	s.tell()
	return results
}

func (s *session) attempt(ctx context.Context, c Check, outcomes map[string]Outcome) finding {
	for _, need := range c.Needs {
		if outcomes[need] != Pass {
			return skip("needs %s", need)
		}
	}
	if ctx.Err() != nil {
		return skip("the run was ended")
	}
	f := c.run(ctx, s)
	if f.outcome == Fail && ctx.Err() != nil {
		return skip("the run was ended meanwhile")
	}
	return f
}

func (s *session) result(c Check, f finding) Result {
	r := Result{Check: c, Outcome: f.outcome, Evidence: printable(f.evidence)}
	if f.outcome == Fail {
		named := strings.NewReplacer("CLUSTER", s.target.Cluster)
		r.Cause = printable(named.Replace(cmp.Or(f.cause, causes()[c.ID], "not so: "+c.Title)))
		r.Remedy = named.Replace(cmp.Or(f.remedy, c.Remedy))
	}
	return r
}

// finding is what a check found.
type finding struct {
	outcome       Outcome
	evidence      string
	cause, remedy string // of a failure, if the check knows better than its entry in the table
}

func pass(format string, args ...any) finding { return ended(Pass, format, args) }
func fail(format string, args ...any) finding { return ended(Fail, format, args) }
func skip(format string, args ...any) finding { return ended(Skip, format, args) }

func ended(o Outcome, format string, args []any) finding {
	return finding{outcome: o, evidence: fmt.Sprintf(format, args...)}
}

// count is a number with what it counts.
func count(n int, singular string) string {
	return fmt.Sprintf("%d %s", n, english.PluralWord(n, singular, ""))
}

const maxEvidence = 400

// printable makes text that may come from a server fit for a terminal.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
	if runes := []rune(text); len(runes) > maxEvidence {
		return string(runes[:maxEvidence]) + "..."
	}
	return text
}

// maxClusters is the largest cluster id that identities are judged by.
func (s *session) maxClusters() uint32 {
	if s.opts.MaxClusters == 0 && s.config.Capabilities.MaxConnectedClusters == schema.MaxClusters511 {
		return schema.MaxClusters511
	}
	return cmp.Or(s.opts.MaxClusters, schema.MaxClusters255)
}
