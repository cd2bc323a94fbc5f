package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// The types below are the stable JSON of the command; every member is always
// there.

type statusView struct {
	Cluster   string        `json:"cluster"`
	ClusterID uint32        `json:"clusterID"`
	Node      string        `json:"node"`
	Version   string        `json:"version"`
	Ready     bool          `json:"ready"`
	Clusters  []clusterView `json:"clusters"`
	Datapath  datapathView  `json:"datapath"`
	Problems  []string      `json:"problems"`
}

type clusterView struct {
	Name         string          `json:"name"`
	ID           uint32          `json:"id"`
	Local        bool            `json:"local"`
	State        string          `json:"state"`
	StateSeconds float64         `json:"stateSeconds"`
	Source       string          `json:"source"`
	Endpoint     string          `json:"endpoint"`
	Services     uint32          `json:"services"`
	Backends     uint32          `json:"backends"`
	Failures     uint64          `json:"failures"`
	LastError    string          `json:"lastError"`
	Rejections   []rejectionView `json:"rejections"`
	provisionalView
	// DataPath and what follows are of remote clusters' backends.
	DataPath      string  `json:"dataPath"`
	RTTSeconds    float64 `json:"rttSeconds"`
	RTTMinSeconds float64 `json:"rttMinSeconds"`
	Dead          bool    `json:"dead"`
	DeadSeconds   float64 `json:"deadSeconds"`
	distanceView
	// Acknowledged and what follows say how far this node's maps are in the
	// cluster's history.
	Acknowledged  string  `json:"acknowledged"`
	AgeSeconds    float64 `json:"ageSeconds"`
	LagP50Seconds float64 `json:"lagP50Seconds"`
	LagP99Seconds float64 `json:"lagP99Seconds"`
	LagSamples    uint32  `json:"lagSamples"`
	Remedy        string  `json:"remedy"`
}

type rejectionView struct {
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
	Example string `json:"example"`
}

type datapathView struct {
	Frontends         uint32 `json:"frontends"`
	FrontendsCapacity uint32 `json:"frontendsCapacity"`
	Records           uint32 `json:"records"`
	RecordsCapacity   uint32 `json:"recordsCapacity"`
	Translated        uint64 `json:"translated"`
	Refused           uint64 `json:"refused"`
	LastError         string `json:"lastError"`
}

type frontendView struct {
	Address  string `json:"address"`
	Port     uint32 `json:"port"`
	Protocol string `json:"protocol"`
	// Kind is cluster-ip, external or node-port; Clients is any, outside or host.
	Kind    string `json:"kind"`
	Clients string `json:"clients"`
}

type backendView struct {
	Address  string `json:"address"`
	Port     uint32 `json:"port"`
	Protocol string `json:"protocol"`
	Cluster  string `json:"cluster"`
	State    string `json:"state"`
	Selected bool   `json:"selected"`
	Reason   string `json:"reason"`
}

type serviceView struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Frontends []frontendView `json:"frontends"`
	Affinity  string         `json:"affinity"`
	Backends  []chosenView   `json:"backends"`

	SessionAffinitySeconds uint32   `json:"sessionAffinitySeconds"`
	Consistent             bool     `json:"consistent"`
	Nearest                string   `json:"nearest"`
	Ramping                bool     `json:"ramping"`
	Problems               []string `json:"problems"`
}

type mapView struct {
	ID         uint32        `json:"id"`
	Namespace  string        `json:"namespace"`
	Name       string        `json:"name"`
	Frontend   frontendView  `json:"frontend"`
	PortName   string        `json:"portName"`
	Affinity   string        `json:"affinity"`
	Offset     uint32        `json:"offset"`
	Generation uint32        `json:"generation"`
	Backends   []backendView `json:"backends"`
}

func newStatus(r *api.StatusResponse) statusView {
	d := r.GetDatapath()
	v := statusView{
		Cluster: r.GetCluster(), ClusterID: r.GetClusterId(), Node: r.GetNode(), Version: r.GetVersion(), Ready: r.GetReady(),
		Clusters: []clusterView{}, Problems: append([]string{}, r.GetProblems()...),
		Datapath: datapathView{
			Frontends: d.GetFrontends(), FrontendsCapacity: d.GetFrontendsCapacity(), Records: d.GetRecords(), RecordsCapacity: d.GetRecordsCapacity(),
			Translated: d.GetTranslated(), Refused: d.GetRefused(), LastError: d.GetLastError(),
		},
	}
	for _, c := range r.GetClusters() {
		cv := clusterView{
			Name: c.GetName(), ID: c.GetId(), Local: c.GetLocal(), State: c.GetState(), StateSeconds: c.GetStateSeconds(), Source: c.GetSource(), Endpoint: c.GetEndpoint(),
			Services: c.GetServices(), Backends: c.GetBackends(), Failures: c.GetFailures(), LastError: c.GetLastError(), Rejections: []rejectionView{},
			DataPath: c.GetDataPath(), RTTSeconds: c.GetRttSeconds(), RTTMinSeconds: c.GetRttMinSeconds(), Dead: c.GetDead(), DeadSeconds: c.GetDeadSeconds(),
			Acknowledged: c.GetAcknowledged(), AgeSeconds: c.GetAgeSeconds(), LagP50Seconds: c.GetLagP50Seconds(), LagP99Seconds: c.GetLagP99Seconds(), LagSamples: c.GetLagSamples(), Remedy: c.GetRemedy(),
			distanceView: newDistance(c), provisionalView: provisionalView{c.GetProvisionalServices(), c.GetProvisionalBackends()},
		}
		for _, x := range c.GetRejections() {
			cv.Rejections = append(cv.Rejections, rejectionView{x.GetReason(), x.GetCount(), x.GetExample()})
		}
		v.Clusters = append(v.Clusters, cv)
	}
	return v
}

func (v statusView) table(w io.Writer) {
	ready := "ready"
	if !v.Ready {
		ready = "not ready"
	}
	fmt.Fprintf(w, "node %s of cluster %s (id %d): %s\n\n", v.Node, v.Cluster, v.ClusterID, ready)
	fmt.Fprintln(w, "CLUSTER\tID\tSTATE\tSINCE\tSOURCE\tAGE\tLAG\tSERVICES\tBACKENDS\tPROVISIONAL\tFAILURES\tDATA PATH\tENDPOINT")
	for _, c := range v.Clusters {
		name := c.Name
		if c.Local {
			name += " (own)"
		}
		since := time.Duration(c.StateSeconds * float64(time.Second)).Round(time.Second)
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", name, c.ID, c.State, since, cmp.Or(c.Source, "-"),
			age(c.Acknowledged, c.AgeSeconds), lag(c.LagSamples, c.LagP50Seconds, c.LagP99Seconds), c.Services, c.Backends, c.ProvisionalBackends, c.Failures, c.path(), c.Endpoint)
	}
	d := v.Datapath
	fmt.Fprintf(w, "\ndata path: %d of %d frontends, %d of %d records, %s translated, %d refused for want of a backend\n",
		d.Frontends, d.FrontendsCapacity, d.Records, d.RecordsCapacity, cli.Count(d.Translated, "connection", ""), d.Refused)
	for _, line := range v.faults() {
		fmt.Fprintf(w, "! %s\n", line)
	}
}

// path is the data path in few words: its state, how long answers take, and the
// same of nodes.
func (c clusterView) path() string {
	text := cmp.Or(c.DataPath, "-")
	switch {
	case c.Dead:
		text = "dead"
	case c.DataPath == "ok" && c.RTTSeconds > 0:
		text = fmt.Sprintf("ok, %.1fms", 1000*c.RTTSeconds)
	}
	return text + c.distanceView.String()
}

// faults lists everything that an operator should look at.
func (v statusView) faults() []string {
	lines := append([]string{}, v.Problems...)
	if v.Datapath.LastError != "" {
		lines = append(lines, "data path: "+v.Datapath.LastError)
	}
	for _, c := range v.Clusters {
		if c.LastError != "" && c.State != "synced" {
			lines = append(lines, c.Name+": "+withRemedy(c.LastError, c.Remedy))
		}
		lines = append(lines, c.provisionalView.lines(c.Name)...)
		for _, r := range c.Rejections {
			lines = append(lines, fmt.Sprintf("%s: refused %d: %s: %s", c.Name, r.Count, r.Reason, r.Example))
		}
	}
	return lines
}

func newFrontend(f *api.Frontend) frontendView {
	return frontendView{f.GetAddress(), f.GetPort(), f.GetProtocol(), f.GetKind(), f.GetClients()}
}

func newBackends(list []*api.Backend) []backendView {
	out := []backendView{}
	for _, b := range list {
		out = append(out, backendView{b.GetAddress(), b.GetPort(), b.GetProtocol(), b.GetCluster(), b.GetState(), b.GetSelected(), b.GetReason()})
	}
	return out
}

type servicesView []serviceView

func newServices(r *api.ServicesResponse) servicesView {
	out := servicesView{}
	for _, s := range r.GetServices() {
		v := serviceView{
			Namespace: s.GetNamespace(), Name: s.GetName(), Frontends: []frontendView{}, Affinity: s.GetAffinity(), Backends: newChosen(s.GetBackends()),
			SessionAffinitySeconds: s.GetSessionAffinitySeconds(), Consistent: s.GetConsistent(), Nearest: s.GetNearest(), Ramping: s.GetRamping(), Problems: append([]string{}, s.GetProblems()...),
		}
		for _, f := range s.GetFrontends() {
			v.Frontends = append(v.Frontends, newFrontend(f))
		}
		out = append(out, v)
	}
	return out
}

func (v servicesView) table(w io.Writer) { v.draw(w, printUsed) }

// wide also shows tiers and shares.
func (v servicesView) wide(w io.Writer) { v.draw(w, printChosen) }

func (v servicesView) draw(w io.Writer, backends func(io.Writer, []chosenView)) {
	for i, s := range v {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s/%s  affinity %s%s\n", s.Namespace, s.Name, s.Affinity, s.extras())
		for _, f := range s.Frontends {
			fmt.Fprintf(w, "  frontend %s\n", f)
		}
		printNearest(w, s.Nearest)
		backends(w, s.Backends)
		for _, line := range s.Problems {
			fmt.Fprintf(w, "  ! %s\n", line)
		}
	}
}

// extras are what few services have.
func (s serviceView) extras() (text string) {
	if s.SessionAffinitySeconds > 0 {
		text += fmt.Sprintf("  session affinity %ds", s.SessionAffinitySeconds)
	}
	if s.Consistent {
		text += "  consistent hashing"
	}
	if s.Ramping {
		text += "  ramping"
	}
	return text
}

// String also says what is not usual.
func (f frontendView) String() string {
	text := endpoint(f.Address, f.Port, f.Protocol)
	switch f.Kind {
	case "external":
		text += " (external)"
	case "node-port":
		text += " (node port)"
	}
	switch f.Clients {
	case "outside":
		text += " for clients outside"
	case "host":
		text += " for this node's own processes"
	}
	return text
}

func endpoint(address string, port uint32, protocol string) string {
	return net.JoinHostPort(address, strconv.FormatUint(uint64(port), 10)) + "/" + protocol
}

func printBackends(w io.Writer, list []backendView) {
	fmt.Fprintln(w, "  BACKEND\tCLUSTER\tSTATE\tUSED\tREASON")
	for _, b := range list {
		fmt.Fprintf(w, "  %s\n", b)
	}
}

func (b backendView) String() string {
	used := "no"
	if b.Selected {
		used = "yes"
	}
	return endpoint(b.Address, b.Port, b.Protocol) + "\t" + b.Cluster + "\t" + b.State + "\t" + used + "\t" + b.Reason
}

type mapsView []mapView

func newMaps(r *api.MapsResponse) mapsView {
	out := mapsView{}
	for _, e := range r.GetEntries() {
		out = append(out, mapView{
			ID: e.GetId(), Namespace: e.GetNamespace(), Name: e.GetName(), Frontend: newFrontend(e.GetFrontend()), PortName: e.GetFrontend().GetPortName(),
			Affinity: e.GetAffinity(), Offset: e.GetOffset(), Generation: e.GetGeneration(), Backends: newBackends(e.GetBackends()),
		})
	}
	return out
}

func (v mapsView) table(w io.Writer) {
	for i, e := range v {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%d  %s  %s/%s %s  affinity %s  records at %d, generation %d\n", e.ID, e.Frontend, e.Namespace, e.Name, e.PortName, e.Affinity, e.Offset, e.Generation)
		printBackends(w, e.Backends)
	}
}
