package schema

import "errors"

// The values of members of [ServiceExport] that choose a behaviour.
const (
	ExportClusterSetIP   = "ClusterSetIP"
	ExportHeadless       = "Headless"
	SessionAffinityNone  = "None"
	TrafficPolicyCluster = "Cluster"
)

// The values of a service's traffic distribution, "" standing for none.
const (
	PreferClose    = "PreferClose"
	PreferSameZone = "PreferSameZone"
	PreferSameNode = "PreferSameNode"
)

// exportJSON is the service export as Cilium v1.20 encodes it. Labels and
// annotations are written twice: up to v1.18 they were spelled with capitals.
type exportJSON struct {
	Cluster               string            `json:"cluster"`
	Name                  string            `json:"name"`
	Namespace             string            `json:"namespace"`
	Annotations           map[string]string `json:"annotations,omitempty"`
	Labels                map[string]string `json:"labels,omitempty"`
	OldLabels             map[string]string `json:"Labels,omitempty"`
	OldAnnotations        map[string]string `json:"Annotations,omitempty"`
	Created               string            `json:"exportCreationTimestamp"`
	Ports                 []exportPortJSON  `json:"ports"`
	Type                  string            `json:"type"`
	SessionAffinity       string            `json:"sessionAffinity"`
	SessionAffinityConfig *affinityJSON     `json:"sessionAffinityConfig,omitempty"`
	IPFamilies            []IPFamily        `json:"ipFamilies,omitempty"`
	InternalTrafficPolicy string            `json:"internalTrafficPolicy,omitempty"`
	TrafficDistribution   string            `json:"trafficDistribution,omitempty"`
}

type exportPortJSON struct {
	Name        string   `json:"name,omitempty"`
	Protocol    Protocol `json:"protocol,omitempty"`
	AppProtocol string   `json:"appProtocol,omitempty"`
	Port        uint16   `json:"port"`
}

type affinityJSON struct {
	ClientIP struct {
		TimeoutSeconds uint32 `json:"timeoutSeconds"`
	} `json:"clientIP"`
}

// Encode returns the value of the export as Cilium v1.20 encodes it, labels and
// annotations under both their spellings. Equal exports have equal bytes. The
// export is written as it is, see Validate.
func (e *ServiceExport) Encode() []byte {
	w := exportJSON{
		Cluster: e.Cluster, Name: e.Name, Namespace: e.Namespace,
		Annotations: e.Annotations, OldAnnotations: e.Annotations,
		Labels: e.Labels, OldLabels: e.Labels,
		Created:               string(EncodeTime(e.Created)),
		Ports:                 make([]exportPortJSON, len(e.Ports)),
		Type:                  e.Type,
		SessionAffinity:       e.SessionAffinity,
		IPFamilies:            e.IPFamilies,
		InternalTrafficPolicy: e.InternalTrafficPolicy,
		TrafficDistribution:   e.TrafficDistribution,
	}
	for i, p := range e.Ports {
		w.Ports[i] = exportPortJSON(p)
	}
	if e.SessionAffinitySeconds != 0 {
		w.SessionAffinityConfig = &affinityJSON{}
		w.SessionAffinityConfig.ClientIP.TimeoutSeconds = e.SessionAffinitySeconds
	}
	return marshal(&w)
}

// Validate checks an export before it is published, against what readers
// refuse: names, the time, ports, and texts outside the alphabets and
// enumerations that [DecodeServiceExport] accepts. How many there are of each
// is not looked at. The error joins an *[Error] per field.
func (e *ServiceExport) Validate() error {
	c := checker{key: ServiceExportKey(e.Cluster, e.Namespace, e.Name)}
	c.source(e.Cluster, e.Namespace, e.Name)
	c.texts("labels", e.Labels)
	c.texts("annotations", e.Annotations)
	c.that(isExportTime(e.Created), "exportCreationTimestamp", string(EncodeTime(e.Created)), timeReason)
	for _, p := range e.Ports {
		c.token("ports/name", p.Name)
		c.that(isProtocol(p.Protocol), "ports/protocol", string(p.Protocol), protocolReason)
		c.token("ports/appProtocol", p.AppProtocol)
		c.that(p.Port != 0, "ports/port", "0", "must be a port from 1 to 65535")
	}
	c.that(e.SessionAffinitySeconds < 1<<31, "sessionAffinityConfig", decimal(e.SessionAffinitySeconds), "must be below 2147483648")
	c.that(len(e.IPFamilies) <= 2, "ipFamilies", "", "must be at most the two there are")
	c.oneOf("type", e.Type, exportTypes())
	c.oneOf("sessionAffinity", e.SessionAffinity, sessionAffinities())
	for _, f := range e.IPFamilies {
		c.that(isFamily(f), "ipFamilies", string(f), familyReason)
	}
	c.oneOf("internalTrafficPolicy", e.InternalTrafficPolicy, trafficPolicies())
	c.oneOf("trafficDistribution", e.TrafficDistribution, trafficDistributions())
	return errors.Join(c.problems...)
}

const timeReason = "must be an RFC 3339 time of the years 1 to 9999 other than 1970-01-01T00:00:00Z, which stands for none"

// isExportTime refuses what Go and this package use for no time, and what
// RFC 3339 has no text for.
func isExportTime(unixSeconds int64) bool {
	const yearOne, afterLast = -62135596800, 253402300800
	return unixSeconds != 0 && yearOne < unixSeconds && unixSeconds < afterLast
}

func exportTypes() []string { return []string{ExportClusterSetIP, ExportHeadless} }

func sessionAffinities() []string { return []string{SessionAffinityNone, SessionAffinityClientIP} }

func trafficPolicies() []string { return []string{"", TrafficPolicyCluster, TrafficPolicyLocal} }

func trafficDistributions() []string {
	return []string{"", PreferClose, PreferSameZone, PreferSameNode}
}
