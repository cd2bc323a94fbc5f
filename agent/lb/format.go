package lb

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// String is namespace/name.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then name.
func (n ServiceName) Compare(o ServiceName) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

// String is the name Kubernetes uses, or the number of an unknown protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}

// String is the annotation's value.
func (a Affinity) String() string {
	switch a {
	case AffinityNone:
		return "none"
	case AffinityLocal:
		return "local"
	case AffinityRemote:
		return "remote"
	}
	return "affinity-" + strconv.Itoa(int(a))
}

// String is the annotation's value.
func (w OnWithdraw) String() string {
	switch w {
	case WithdrawKeep:
		return "keep"
	case WithdrawDrain:
		return "drain"
	case WithdrawReset:
		return "reset"
	}
	return "on-withdraw-" + strconv.Itoa(int(w))
}

// String is the state in lower case.
func (s State) String() string {
	switch s {
	case Active:
		return "active"
	case Terminating:
		return "terminating"
	case NotReady:
		return "not-ready"
	case Quarantined:
		return "quarantined"
	case Maintenance:
		return "maintenance"
	}
	return "state-" + strconv.Itoa(int(s))
}

// String names what the address is.
func (k Kind) String() string {
	switch k {
	case KindClusterIP:
		return "cluster-ip"
	case KindExternal:
		return "external"
	case KindNodePort:
		return "node-port"
	}
	return "kind-" + strconv.Itoa(int(k))
}

// String names the clients.
func (s Scope) String() string {
	switch s {
	case ScopeAny:
		return "any"
	case ScopeOutside:
		return "outside"
	case ScopeHost:
		return "host"
	}
	return "scope-" + strconv.Itoa(int(s))
}

// Format renders tables as text, sorted by service and frontend, so that equal
// sets of tables give equal texts. A frontend is one line, each of its backends
// an indented one: "+" takes new connections, "-" does not. What is usual is
// left out: cluster IPs, clients of any kind, even shares, no session affinity,
// keeping connections.
func Format(tables []FrontendTable) string {
	sorted := slices.Clone(tables)
	slices.SortStableFunc(sorted, compareTables)
	var b strings.Builder
	for i := range sorted {
		formatTable(&b, &sorted[i])
	}
	return b.String()
}

// String renders one table as [Format] does.
func (t FrontendTable) String() string { return Format([]FrontendTable{t}) }

func compareTables(a, b FrontendTable) int {
	return cmp.Or(a.Service.Compare(b.Service), a.Frontend.Addr.Compare(b.Frontend.Addr),
		cmp.Compare(a.Frontend.Protocol, b.Frontend.Protocol), cmp.Compare(a.Frontend.Scope, b.Frontend.Scope))
}

func formatTable(b *strings.Builder, t *FrontendTable) {
	write(b, t.Service.String(), " ", t.Frontend.Addr.String(), "/", t.Frontend.Protocol.String())
	if t.Frontend.Kind != KindClusterIP {
		write(b, " ", t.Frontend.Kind.String())
	}
	if t.Frontend.Scope != ScopeAny {
		write(b, " clients=", t.Frontend.Scope.String())
	}
	writeField(b, " port=", t.Frontend.PortName)
	write(b, " affinity=", t.Affinity.String())
	formatPolicy(b, t)
	write(b, "\n")
	var total uint64
	for i := range t.Backends {
		total += uint64(t.Backends[i].Weight)
	}
	if t.Even() {
		total = 0
	}
	for i := range t.Backends {
		formatChoice(b, &t.Backends[i], total)
	}
}

// formatPolicy writes what is not usual.
func formatPolicy(b *strings.Builder, t *FrontendTable) {
	if t.SessionAffinity > 0 {
		write(b, " session=", strconv.FormatUint(uint64(t.SessionAffinity), 10), "s")
	}
	if t.Consistent {
		write(b, " consistent")
	}
	if t.OnWithdraw != WithdrawKeep {
		write(b, " on-withdraw=", t.OnWithdraw.String())
	}
	if t.Drain > 0 {
		write(b, ":", strconv.FormatUint(uint64(t.Drain), 10), "s")
	}
	var tiers []string
	for i := range maxTiers {
		if t.Spilling&(1<<i) != 0 {
			tiers = append(tiers, strconv.Itoa(i+1))
		}
	}
	writeField(b, " spilling=", strings.Join(tiers, ","))
	if t.Ramping {
		write(b, " ramping")
	}
}

// formatChoice writes a backend, with its share of total unless that is 0.
func formatChoice(b *strings.Builder, c *Choice, total uint64) {
	mark := "  - "
	if c.Selected {
		mark = "  + "
	}
	write(b, mark, c.Addr.String(), "/", c.Protocol.String(), " ", c.Cluster, "(", strconv.Itoa(int(c.ClusterID)), ")")
	if c.Local {
		write(b, " local")
	}
	if c.Here {
		write(b, " here")
	}
	write(b, " ", c.State.String())
	writeField(b, " names=", strings.Join(c.Names, ","))
	writeField(b, " zone=", c.Zone)
	write(b, ": ", c.Reason)
	if c.Withdrawn {
		write(b, " withdrawn")
	}
	if c.Selected && total > 0 {
		write(b, " ", percent(c.Weight, total))
	}
	write(b, "\n")
}

// percent formats part of whole with two decimals.
func percent(part uint32, whole uint64) string {
	hundredths := (uint64(part)*10_000 + whole/2) / whole
	rest := strconv.FormatUint(100+hundredths%100, 10)
	return strconv.FormatUint(hundredths/100, 10) + "." + rest[1:] + "%"
}

func write(b *strings.Builder, parts ...string) {
	for _, p := range parts {
		b.WriteString(p)
	}
}

// writeField writes label and value unless value is empty.
func writeField(b *strings.Builder, label, value string) {
	if value != "" {
		write(b, label, value)
	}
}
