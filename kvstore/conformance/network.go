package conformance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

func networkChecks() []Check {
	return []Check{{
		ID: "resolve", Group: "network", Title: "the endpoint's host has an address",
		Why:    "the client cannot connect and tries again for ever; the cluster never becomes ready",
		Remedy: "correct the endpoint's host, add a DNS record, or give the host its addresses in cilium-host-aliases",
		run:    checkResolve,
	}, {
		ID: "connect", Group: "network", Title: "an address takes TCP connections", Needs: []string{"resolve"},
		Why:    "the client cannot connect and tries again for ever; the cluster never becomes ready",
		Remedy: "check that the apiserver runs, that its load balancer or node port leads to it, and that no firewall is between",
		run:    checkConnect,
	}}
}

func checkResolve(ctx context.Context, s *session) finding {
	if err := s.target.Validate(); err != nil {
		return fail("%v", err)
	}
	how := "from cilium-host-aliases"
	s.addrs = slices.Clone(s.target.HostAliases[s.host])
	if addr, err := netip.ParseAddr(s.host); err == nil && len(s.addrs) == 0 {
		s.addrs, how = []netip.Addr{addr}, "as written"
	}
	if len(s.addrs) == 0 {
		ctx, cancel := s.timeout(ctx)
		defer cancel()
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", s.host)
		if err != nil {
			return fail("look up %q: %v", s.host, err)
		}
		s.addrs, how = found, "from DNS"
	}
	for i, addr := range s.addrs {
		s.addrs[i] = addr.Unmap()
	}
	return pass("%s: %s, %s", s.host, join(s.addrs), how)
}

func join[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}

func checkConnect(ctx context.Context, s *session) finding {
	var failures []string
	var last error
	for _, addr := range s.addrs {
		address := net.JoinHostPort(addr.String(), s.port)
		conn, err := s.dialTCP(ctx, address)
		if err != nil {
			failures, last = append(failures, err.Error()), err
			continue
		}
		conn.Close()
		if s.address == "" {
			s.address = address
		}
	}
	if s.address == "" {
		return noConnection(fail("%s", strings.Join(failures, ", ")), last)
	}
	if len(failures) > 0 {
		return pass("connected to %s, but not everywhere: %s", s.address, strings.Join(failures, ", "))
	}
	return pass("connected to %s", s.address)
}
