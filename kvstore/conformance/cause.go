package conformance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// causes say of each check what is wrong when it fails, unless the check itself
// knows better.
func causes() map[string]string {
	all := map[string]string{
		"resolve": "the endpoint's host has no address", "connect": "nothing takes TCP connections at the endpoint",
		"client-files": "certificate, key or CA of this side cannot be used", "client-validity": "this side's certificate is not valid now", "client-name": "this side's certificate names no role of a reader",
		"tls-handshake": "no TLS is spoken at the endpoint", "tls-version": "the server's TLS is too old", "tls-alpn": "HTTP/2 is not offered",
		"tls-chain": "wrong CA: the server's certificate does not come from the CA in the cluster file", "tls-name": "wrong name: the server's certificate does not name the endpoint's host",
		"tls-validity": "the server's certificate is not valid now", "tls-usage": "the server's certificate is not one of a server",
		"refuses-plain-text": "the port answers without TLS", "refuses-no-certificate": "the server asks for no client certificate", "refuses-foreign-ca": "the server takes client certificates of any CA",
		"client-accepted": "the server refuses this side's certificate", "etcd-api": "something other than etcd answers",
		"cluster-name": "the cluster's name is not valid", "read-config": "the cluster's announcement may not be read", "config-exists": "the cluster announces nothing under this name: its apiserver is not ready, or it has another name",
		"config-json": "the cluster's announcement is not understood", "config-id-range": "the cluster's id is not a legal one", "config-id-own": "the cluster has our own id",
		"config-max-clusters": "the clusters divide identities differently", "config-export-mode": "the cluster exports in a form that is not known",
		"config-cached": "entries lie elsewhere than announced", "canary-spelling": "a canary is spelled as no reader expects",
		"data-ip-identities": "an address has an identity that is not published", "data-ip-hosts": "an address is on a node that is not published",
		"deny-config-list": "the announcements of all clusters may be listed", "deny-other-keys": "all keys may be listed",
		"deny-put": "a put is not refused", "deny-delete": "a deletion is not refused", "deny-txn": "a transaction is not refused", "deny-lease": "a lease is not refused",
		"page-order": "listings are out of order or range", "page-limit": "a page has more keys than asked for", "page-more": "a page hides that more follow", "page-revision": "pages are of different revisions",
		"future-revision": "a revision that does not exist is answered", "compacted-range": "a revision that is no longer kept is not refused as etcd does",
		"watch-start": "a watch begins at another revision than asked for", "compacted-watch": "a watch of a revision that is no longer kept is not canceled as etcd does",
		"watch-range": "a watch brings what was not asked for", "watch-order": "changes come in another order than they happened", "watch-deletes": "deletions are not announced", "watch-open": "a watch does not stay open",
		"ping-answered": "pings are not answered", "ping-tolerated": "the server ends connections that are pinged",
		"read-heartbeat": "the heartbeat may not be listed", "read-synced": "the cluster's canaries may not be listed", "read-state": "the cluster's entries may not be listed", "watch-ranges": "what may be listed may not be watched",
		"heartbeat-recent": "the heartbeat has stopped", "clock-skew": "the clocks of the two sides disagree", "heartbeat-put": "no heartbeat arrives",
		"header-unary": "replies have no etcd cluster id", "header-constant": "several servers answer one connection", "header-stream": "watches and listings are answered by different servers",
		"agent": "clustermesh-agent cannot connect", "mesh-ids": "two clusters have the same id", "mesh-pod-ranges": "the pod ranges of two clusters overlap",
	}
	for _, k := range kinds() {
		all["canary-"+k.String()] = "the canary of " + k.String() + " is missing: the cluster has not published all of them"
		all["data-"+k.String()] = "entries of " + k.String() + " are not valid"
	}
	return all
}

// because gives a failure a cause of its own, and a remedy unless it is "".
func (f finding) because(cause, remedy string) finding {
	f.cause, f.remedy = cause, remedy
	return f
}

const (
	closedRemedy = "start CLUSTER's apiserver or correct the port; if its load balancer has another address now, correct the DNS record, the endpoint, or cilium-host-aliases in the cluster file"
	silentRemedy = "open the port in the firewalls and security groups between here and there, and check routes; if CLUSTER's load balancer has another address now, correct the endpoint"
	halfRemedy   = "check what the load balancer or proxy leads to (its targets' health, idle connections that it forgot) and firewalls that let only the handshake through"
)

// noConnection explains why a TCP connection was not made.
func noConnection(f finding, err error) finding {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return f.because("port closed: nobody listens at the endpoint", closedRemedy)
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout():
		return f.because("no answer: packets to the endpoint are dropped on the way, or the host is away", silentRemedy)
	case errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH):
		return f.because("no route to the endpoint", silentRemedy)
	}
	return f
}

// noHandshake explains why a TCP connection did not become a TLS one.
func noHandshake(f finding, err error) finding {
	switch {
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return f.because("half-open: TCP connects, and then nothing is answered", halfRemedy)
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return f.because("TCP connects and is closed again before TLS", halfRemedy)
	case strings.Contains(err.Error(), "first record does not look like a TLS handshake"):
		return f.because("another service, without TLS, answers at the endpoint", "")
	}
	return f
}

// meshDomain ends the name that each cluster's server has.
const meshDomain = ".mesh.cilium.io"

// strayed tells whether a server's certificate is that of another cluster than
// the one asked for, and then of which.
func (s *session) strayed() (cluster string, stray bool) {
	for _, name := range s.leaf().DNSNames {
		found, ok := strings.CutSuffix(name, meshDomain)
		if found == s.target.Cluster {
			return "", false
		}
		if ok && cluster == "" {
			cluster, stray = found, true
		}
	}
	return cluster, stray
}

// elsewhere explains a failure by the endpoint leading to another cluster.
func (s *session) elsewhere(f finding) finding {
	if other, stray := s.strayed(); stray {
		return f.because(fmt.Sprintf("the endpoint leads to cluster %s and not to CLUSTER", other),
			"correct the endpoint, its DNS record or cilium-host-aliases: the address of CLUSTER's load balancer has changed, or belongs to another cluster now")
	}
	return f
}

// invalid explains a certificate that is not valid at this time.
func invalid(f finding, c *x509.Certificate, early bool) finding {
	if early {
		return f.because(fmt.Sprintf("clocks disagree: certificate %q is not valid yet", c.Subject), "synchronise the clock of this machine and that of the one that issued the certificate (chronyc tracking, timedatectl); then nothing has to be issued anew")
	}
	return f.because(fmt.Sprintf("certificate %q has expired", c.Subject), "")
}

// late explains a heartbeat that is old by this machine's clock. Where the
// server's certificate has expired by the same clock, and had not when the
// heartbeat was written, one fault explains both.
func late(f finding, at time.Time, age time.Duration, c *x509.Certificate) finding {
	if time.Now().After(c.NotAfter) && !at.After(c.NotAfter) {
		return f.because(fmt.Sprintf("clocks disagree: this machine's is %s ahead of CLUSTER's, by which its certificate is valid", age.Round(time.Second)),
			"synchronise the clocks of both machines (chronyc tracking, timedatectl) before anything is issued anew; if they agree, CLUSTER's apiserver has stopped writing: see its log")
	}
	return f
}
