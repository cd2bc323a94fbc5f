package conformance

import (
	"context"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
)

func agentChecks() []Check {
	return []Check{{
		ID: "agent", Group: "agent", Title: "clustermesh's own agents can connect",
		Needs:  []string{"tls-version", "tls-alpn", "tls-chain", "tls-name", "tls-validity", "tls-usage", "read-heartbeat", "header-unary", "header-constant"},
		Why:    "Cilium's clients connect, clustermesh-agent does not: it needs TLS 1.3",
		Remedy: "allow TLS 1.3 at the server",
		run:    checkAgent,
	}}
}

// checkAgent connects as an agent does, verifying everything.
func checkAgent(ctx context.Context, s *session) finding {
	cfg, err := certs.ClientTLS(certs.ClientFiles{Cert: s.target.CertFile, Key: s.target.KeyFile, CA: s.target.CAFile}, nil)
	if err != nil {
		return fail("%v", err)
	}
	conn, err := kvstore.Dial(ctx, kvstore.ConnConfig{Endpoints: []string{s.target.Endpoint}, HostAliases: s.target.HostAliases, TLS: cfg, DialTimeout: s.opts.Timeout})
	if err != nil {
		return fail("%v", err)
	}
	defer conn.Close()
	return pass("cluster id %x", conn.Life())
}
