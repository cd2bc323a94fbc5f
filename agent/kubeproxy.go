package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf"
)

// proxySigns are traces of kube-proxy on a node.
type proxySigns struct {
	said   string // what kube-proxy itself says its mode is
	chains []nftChain
	ipvs   string // text of /proc/net/ip_vs
	legacy string // text of /proc/net/ip_tables_names
}

// nftChain is a chain of netfilter's tables, by whatever tool it was made.
type nftChain struct{ table, name string }

// proxyModeURL is where a kube-proxy answers in its default configuration.
const proxyModeURL = "http://127.0.0.1:10249/proxyMode"

// checkKubeProxy says how this node balances what the agent does not. It looks
// and changes nothing.
func checkKubeProxy() bpf.Finding {
	signs := proxySigns{said: askProxyMode(proxyModeURL)}
	signs.chains, _ = listChains() // without the right to look, none
	ipvs, _ := os.ReadFile("/proc/net/ip_vs")
	legacy, _ := os.ReadFile("/proc/net/ip_tables_names")
	signs.ipvs, signs.legacy = string(ipvs), string(legacy)
	return signs.finding()
}

func askProxyMode(url string) string {
	client := http.Client{Timeout: time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64))
	if err != nil || answer.StatusCode != http.StatusOK {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// modes are what the signs point at, each once.
func (s proxySigns) modes() []string {
	var all []string
	if s.said != "" {
		all = append(all, fmt.Sprintf("%q by its own word", s.said))
	}
	if slices.ContainsFunc(s.chains, func(c nftChain) bool { return c.table == "kube-proxy" }) {
		all = append(all, "nftables (table kube-proxy)")
	}
	if slices.ContainsFunc(s.chains, func(c nftChain) bool { return c.name == "KUBE-SERVICES" }) {
		all = append(all, "iptables (chain KUBE-SERVICES)")
	}
	if ipvsServices(s.ipvs) {
		all = append(all, "IPVS (virtual services)")
	}
	if strings.Contains(s.legacy, "nat") {
		all = append(all, "perhaps iptables (a nat table of the old kind)")
	}
	return all
}

func ipvsServices(text string) bool {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "TCP" || f[0] == "UDP" || f[0] == "SCTP") {
			return true
		}
	}
	return false
}

func (s proxySigns) finding() bpf.Finding {
	f := bpf.Finding{Check: "kube-proxy", OK: true}
	modes := s.modes()
	if len(modes) == 0 {
		f.OK, f.Detail = false, "no sign of kube-proxy"
		f.Remedy = "the agent balances global services only; have kube-proxy or its replacement balance the others"
		return f
	}
	f.Detail = strings.Join(modes, ", ") + "; it keeps the services that are not global, the others are decided at the socket before it sees them"
	return f
}

// Numbers of linux/netfilter/nf_tables.h.
const (
	nftGetChain   = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	nftChainTable = unix.NFTA_CHAIN_TABLE
	nftChainName  = unix.NFTA_CHAIN_NAME
	nfgenmsgSize  = 4
)

// listChains asks the kernel for all chains of this network namespace.
func listChains() ([]nftChain, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return nil, err
	}
	ask := make([]byte, unix.SizeofNlMsghdr+nfgenmsgSize)
	binary.NativeEndian.PutUint32(ask, uint32(len(ask)))
	binary.NativeEndian.PutUint16(ask[4:], nftGetChain)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	return readChains(fd)
}

func readChains(fd int) ([]nftChain, error) {
	var all []nftChain
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return all, err
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return all, err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return all, nil
			case unix.NLMSG_ERROR:
				return all, errors.New("list chains: the kernel refuses")
			}
			all = append(all, chainOf(m.Data))
		}
	}
}

// chainOf reads the attributes behind the message's own header.
func chainOf(data []byte) (c nftChain) {
	for data = data[min(nfgenmsgSize, len(data)):]; len(data) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(data))
		if size < unix.SizeofNlAttr || size > len(data) {
			return c
		}
		value := string(bytes.TrimRight(data[unix.SizeofNlAttr:size], "\x00"))
		switch binary.NativeEndian.Uint16(data[2:]) {
		case nftChainTable:
			c.table = value
		case nftChainName:
			c.name = value
		}
		data = data[min((size+3)&^3, len(data)):]
	}
	return c
}
