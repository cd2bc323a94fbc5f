package export

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
)

// pod is a pod and what is exported of it. labels is "" when nothing is.
type pod struct {
	object    *corev1.Pod
	labels    string
	addresses []netip.Addr
}

// numbered is a label text, the number it has, and how many pods use it.
type numbered struct {
	number uint32
	ok     bool
	pods   int
}

func (e *Exporter) observePod(o *corev1.Pod, deleted bool) {
	n := name{o.Namespace, o.Name}
	e.dirty.pods[n] = struct{}{}
	p := e.pods[n]
	if p == nil {
		p = &pod{}
		e.pods[n] = p
	}
	p.object = o
	if deleted {
		p.object = nil
	}
}

// exportPods computes pods, then the identities they use, then the addresses,
// which need both.
func (e *Exporter) exportPods() {
	for n := range e.dirty.pods {
		e.updatePod(n, e.pods[n])
	}
	e.acquire()
	for a := range e.dirty.addresses {
		e.exportAddress(a)
	}
	e.release()
}

func (e *Exporter) updatePod(n name, p *pod) {
	f := &findings{object: "Pod " + n.String()}
	old := *p
	p.labels, p.addresses = e.describe(p.object, f)
	e.report(f.object, f.found)
	e.count(old.labels, -1)
	e.count(p.labels, +1)
	for _, a := range old.addresses {
		e.unclaim(a, n)
	}
	for _, a := range p.addresses {
		e.claim(a, n)
	}
	if p.object == nil {
		delete(e.pods, n)
	}
}

// describe returns what is exported of a pod: nothing if it shares its node's
// address, has none yet, is finished, or its namespace is not global.
func (e *Exporter) describe(o *corev1.Pod, f *findings) (labels string, addresses []netip.Addr) {
	if o == nil || o.Spec.HostNetwork || finished(o) || !e.global(o.Namespace) {
		return "", nil
	}
	addresses = podAddresses(o, f)
	if len(addresses) == 0 {
		return "", nil
	}
	return e.identityLabels(o, e.namespaces[o.Namespace]), addresses
}

func finished(o *corev1.Pod) bool {
	return o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed
}

func podAddresses(o *corev1.Pod, f *findings) []netip.Addr {
	texts := []string{o.Status.PodIP}
	for _, ip := range o.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	var addresses []netip.Addr
	for _, text := range texts {
		if a, ok := parseAddress(text, "podIP", f); ok && !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

func (e *Exporter) count(labels string, by int) {
	if labels == "" {
		return
	}
	if e.numbers[labels] == nil {
		e.numbers[labels] = &numbered{}
	}
	e.numbers[labels].pods += by
	e.dirty.labels[labels] = struct{}{}
}

func (e *Exporter) claim(a netip.Addr, n name) {
	e.claims[a] = append(e.claims[a], n)
	e.dirty.addresses[a] = struct{}{}
}

func (e *Exporter) unclaim(a netip.Addr, n name) {
	e.claims[a] = slices.DeleteFunc(e.claims[a], func(other name) bool { return other == n })
	if len(e.claims[a]) == 0 {
		delete(e.claims, a)
	}
	e.dirty.addresses[a] = struct{}{}
}

// acquire finds a number for every label text in use, in the order of the
// texts: a table that is filled from one set gives the same numbers however
// the set was heard.
func (e *Exporter) acquire() {
	for labels := range e.waiting {
		e.dirty.labels[labels] = struct{}{}
	}
	for _, labels := range slices.Sorted(maps.Keys(e.dirty.labels)) {
		if n := e.numbers[labels]; n.pods > 0 {
			e.acquireOne(labels, n)
		}
	}
}

func (e *Exporter) acquireOne(labels string, n *numbered) {
	if !n.ok {
		n.number, n.ok = e.identities.Acquire(labels)
	}
	_, waited := e.waiting[labels]
	if !n.ok {
		e.wait(labels)
		return
	}
	if waited {
		e.stopWaiting(labels)
		e.touchPodsWith(labels)
	}
	e.set(schema.KindIdentity, schema.IdentityKey(n.number), []byte(labels))
}

// wait remembers labels that get no number, for the next settling to retry.
func (e *Exporter) wait(labels string) {
	e.waiting[labels] = struct{}{}
	f := &findings{object: "Identity " + labels}
	f.add(IdentitiesExhausted, "no number of the cluster's range is free, so its pods have no identity; use fewer different pod labels")
	e.report(f.object, f.found)
}

func (e *Exporter) stopWaiting(labels string) {
	delete(e.waiting, labels)
	e.report("Identity "+labels, nil)
}

// touchPodsWith marks the addresses of pods whose labels got their number
// later than the pods were heard.
func (e *Exporter) touchPodsWith(labels string) {
	for _, p := range e.pods {
		if p.labels != labels {
			continue
		}
		for _, a := range p.addresses {
			e.dirty.addresses[a] = struct{}{}
		}
	}
}

func (e *Exporter) release() {
	for _, labels := range slices.Sorted(maps.Keys(e.dirty.labels)) {
		if n := e.numbers[labels]; n.pods == 0 {
			e.releaseOne(labels, n)
		}
	}
}

func (e *Exporter) releaseOne(labels string, n *numbered) {
	if n.ok {
		e.identities.Release(labels)
		e.set(schema.KindIdentity, schema.IdentityKey(n.number), nil)
	}
	delete(e.numbers, labels)
	e.stopWaiting(labels)
}

// exportAddress publishes an address for the pod that owns it. Of several that
// claim it the oldest does, by creation time and then by name, whichever was
// heard first; the next takes over when it goes.
func (e *Exporter) exportAddress(a netip.Addr) {
	key, claims := schema.IPKey(a.String()), e.claims[a]
	var value []byte
	if len(claims) > 0 {
		owner := slices.MinFunc(claims, e.compareAge)
		value = e.encodeAddress(a, e.pods[owner])
		e.reportRivals(a, owner, claims)
	} else {
		e.report("address "+a.String(), nil)
	}
	e.set(schema.KindIP, key, value)
}

func (e *Exporter) compareAge(a, b name) int {
	x, y := e.pods[a].object.CreationTimestamp, e.pods[b].object.CreationTimestamp
	return cmp.Or(cmp.Compare(x.Unix(), y.Unix()), compareNames(a, b))
}

func (e *Exporter) reportRivals(a netip.Addr, owner name, claims []name) {
	var found []Problem
	for _, rival := range claims {
		if rival != owner {
			found = append(found, Problem{Object: "Pod " + rival.String(), Reason: AddressConflict,
				Message: fmt.Sprintf("address %s belongs to the older pod %s; delete the wrong pod", a, owner)})
		}
	}
	e.report("address "+a.String(), found)
}

func (e *Exporter) encodeAddress(a netip.Addr, p *pod) []byte {
	n := e.numbers[p.labels]
	if !n.ok {
		return nil
	}
	entry := schema.IPEntry{
		IP: a.String(), HostIP: hostIP(p.object), ID: n.number,
		K8sNamespace: p.object.Namespace, K8sPodName: p.object.Name,
		K8sServiceAccount: p.object.Spec.ServiceAccountName, NamedPorts: namedPorts(p.object),
	}
	return entry.Encode()
}

// hostIP leaves out what does not parse: readers decode it as an address.
func hostIP(o *corev1.Pod) string {
	a, err := netip.ParseAddr(o.Status.HostIP)
	if err != nil || a.Zone() != "" {
		return ""
	}
	return a.Unmap().String()
}

func namedPorts(o *corev1.Pod) []schema.NamedPort {
	var ports []schema.NamedPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			ports = appendPort(ports, p)
		}
	}
	for i := range o.Spec.InitContainers {
		if c := &o.Spec.InitContainers[i]; c.RestartPolicy != nil { // a sidecar
			add(c)
		}
	}
	for i := range o.Spec.Containers {
		add(&o.Spec.Containers[i])
	}
	slices.SortFunc(ports, func(a, b schema.NamedPort) int { return cmp.Compare(a.Name, b.Name) })
	return ports
}

// appendPort keeps the first of several ports with one name.
func appendPort(ports []schema.NamedPort, p corev1.ContainerPort) []schema.NamedPort {
	l4, ok := parsePort(p.ContainerPort, p.Protocol, &findings{})
	taken := slices.ContainsFunc(ports, func(q schema.NamedPort) bool { return q.Name == p.Name })
	if p.Name == "" || !ok || taken {
		return ports
	}
	return append(ports, schema.NamedPort{Name: p.Name, Port: l4.Port, Protocol: l4.Protocol})
}
