package pod

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// servers is what runs for one pod.
type servers struct {
	addrs   []netip.Addr
	closers []io.Closer
}

// open gives the pod's addresses to loopback, to which the other nodes route
// them, and listens on every port.
func open(s Server) (*servers, error) {
	run := &servers{}
	for _, a := range s.Addrs {
		if err := setAddress(netlink.AddrAdd, a); err != nil {
			return nil, errors.Join(fmt.Errorf("add pod address %s: %w", a, err), run.close())
		}
		run.addrs = append(run.addrs, a)
		if err := awaitRoute(a); err != nil {
			return nil, errors.Join(err, run.close())
		}
		for _, port := range s.Ports {
			if err := run.listen(netip.AddrPortFrom(a, port), s.Name); err != nil {
				return nil, errors.Join(err, run.close())
			}
		}
	}
	return run, nil
}

func (r *servers) close() error {
	var errs []error
	for _, c := range r.closers {
		errs = append(errs, c.Close())
	}
	for _, a := range r.addrs {
		errs = append(errs, setAddress(netlink.AddrDel, a))
	}
	return errors.Join(errs...)
}

func setAddress(change func(netlink.Link, *netlink.Addr) error, a netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	host := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
	return change(lo, &netlink.Addr{IPNet: host, Flags: unix.IFA_F_NODAD})
}

// routeLimit is how long the kernel may take to make a new address reachable.
const routeLimit = 10 * time.Second

// awaitRoute waits until packets for a new address are taken in. For IPv6 the
// kernel adds the route some time after the address, while sockets can be bound
// to it already.
func awaitRoute(a netip.Addr) error {
	deadline := time.Now().Add(routeLimit)
	for {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("address %s has no local route after %v: %v", a, routeLimit, routes), err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (r *servers) listen(at netip.AddrPort, name string) error {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	web := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	r.closers = append(r.closers, web)
	go func() { _ = web.Serve(tcp) }() // ends when web is closed
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	r.closers = append(r.closers, udp)
	go echo(udp, name)
	return nil
}

// echo answers every datagram with the pod's name until the socket is closed.
func echo(c *net.UDPConn, name string) {
	buffer := make([]byte, answerMaxSize)
	for {
		_, from, err := c.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteToUDPAddrPort([]byte(name), from) // a lost answer shows at the client
		}
	}
}
