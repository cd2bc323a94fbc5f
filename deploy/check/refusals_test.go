package check

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// refusal is a contradiction in the values and what its error has to name.
type refusal struct{ name, values, names string }

func refusals() []refusal {
	const east = "cluster: {name: east, id: 1}\n"
	return []refusal{
		{"nothing is said", "", "/cluster"},
		{"no name", "cluster: {id: 1}", "/cluster/name"},
		{"no id", "cluster: {name: east}", "/cluster/id"},
		{"capital letters", "cluster: {name: East, id: 1}", "/cluster/name"},
		{"name ends in a dash", "cluster: {name: east-, id: 1}", "/cluster/name"},
		{"name of 33 letters", "cluster: {name: a23456789012345678901234567890123, id: 1}", "/cluster/name"},
		{"id 0", "cluster: {name: east, id: 0}", "/cluster/id"},
		{"id 256 of 255", "cluster: {name: east, id: 256}", "/cluster/id"},
		{"id 512 of 511", "cluster: {name: east, id: 512, maxConnected: 511}", "/cluster/id"},
		{"other limit", "cluster: {name: east, id: 1, maxConnected: 300}", "/cluster/maxConnected"},
		{"itself among the others", east + "clusters: [west, east]", `clusters: "east"`},
		{"the same cluster twice", east + "clusters: [west, west]", "/clusters"},
		{"a cluster whose Secret is the peers'", east + "clusters: [peers]", "clustermesh-peers"},
		{"a cluster whose Secret is the server's", east + "clusters: [server-cert]", "clustermesh-server-cert"},
		{"itself restricted", east + "agent: {accepts: {east: {}}}", `agent.accepts: "east"`},
		{"misspelt restriction", east + "agent: {accepts: {west: {pod-cidr: [10.0.0.0/8]}}}", "'pod-cidr'"},
		{"unknown member", east + "replicas: 2", "'replicas'"},
		{"unknown member of the apiserver", east + "apiserver: {replica: 2}", "'replica'"},
		{"unknown member of the Service", east + "apiserver: {service: {ports: 2379}}", "'ports'"},
		{"unknown member of the agent", east + "agent: {privileged: true}", "'privileged'"},
		{"cert-manager and a server's Secret", east + "tls: {existingServerSecret: mine, certManager: {enabled: true, issuerRef: {name: ca}}}", "/tls/existingServerSecret"},
		{"cert-manager and the agents' Secret", east + "tls: {existingLocalSecret: mine, certManager: {enabled: true, issuerRef: {name: ca}}}", "/tls/existingLocalSecret"},
		{"cert-manager without issuer", east + "tls: {certManager: {enabled: true}}", "/tls/certManager/issuerRef/name"},
		{"cert-manager and a revocation list", east + "tls: {crl: true, certManager: {enabled: true, issuerRef: {name: ca}}}", "/tls/crl"},
		{"hosts without cert-manager", east + "tls: {hosts: [mesh.example.com]}", "/tls/hosts"},
		{"no replica", east + "apiserver: {replicas: 0}", "/apiserver/replicas"},
		{"replicas without affinity", east + "apiserver: {replicas: 2, service: {sessionAffinity: None}}", "/apiserver/service/sessionAffinity"},
		{"replicas behind a fixed port of some nodes", east + "apiserver: {replicas: 2, service: {type: NodePort, nodePort: 32379, externalTrafficPolicy: Local}}", "/apiserver/service/externalTrafficPolicy"},
		{"node port without nodes", east + "apiserver: {service: {type: ClusterIP, nodePort: 32379}}", "/apiserver/service/nodePort"},
		{"internal without load balancer", east + "apiserver: {service: {type: NodePort, internal: aws}}", "/apiserver/service/internal"},
		{"sources without load balancer", east + "apiserver: {service: {type: ClusterIP, loadBalancerSourceRanges: [10.0.0.0/8]}}", "/apiserver/service/loadBalancerSourceRanges"},
		{"unknown cloud", east + "apiserver: {service: {internal: ibm}}", "/apiserver/service/internal"},
		{"unknown type", east + "apiserver: {service: {type: ExternalName}}", "/apiserver/service/type"},
		{"unknown source of identities", east + "apiserver: {identitySource: crd}", "/apiserver/identitySource"},
		{"Cilium's slices without Cilium", east + "apiserver: {identitySource: own, ciliumEndpointSlices: true}", "/apiserver/ciliumEndpointSlices"},
		{"a boolean where a word belongs", east + "apiserver: {mcsAPI: true}", "/apiserver/mcsAPI"},
		{"digest that is none", east + "agent: {image: {digest: latest}}", "/agent/image/digest"},
		{"namespace that is none", east + "agent: {hostNetns: pod}", "/agent/hostNetns"},
		{"range that is none", east + "agent: {denyCIDRs: [pods]}", "/agent/denyCIDRs/0"},
		{"profile without name", east + "agent: {seccomp: {type: Localhost}}", "/agent/seccomp/localhostProfile"},
		{"name without profile", east + "agent: {seccomp: {localhostProfile: agent.json}}", "/agent/seccomp/localhostProfile"},
		{"devices without rules", east + "agent: {devices: {enabled: true}}", "/agent/devices/rules"},
		{"rules without devices", east + "agent: {devices: {rules: [eth0]}}", "/agent/devices/rules"},
		{"metrics that nobody reaches", east + "monitor: {enabled: true}\nagent: {hostNetwork: true}", "/agent/metricsOnNode"},
		{"the root of the node", east + "agent: {runDir: /}", "/agent/runDir"},
		{"nodes probed where nothing is", east + "agent: {probe: {enabled: false, nodePort: 10250}}", "/agent/probe/nodePort"},
		{"port that is none", east + "agent: {probe: {nodePort: 65536}}", "/agent/probe/nodePort"},
		{"probes without a unit", east + "agent: {probe: {interval: \"200\"}}", "/agent/probe/interval"},
		{"probes too often", east + "agent: {probe: {interval: 9ms}}", "/agent/probe/interval"},
		{"share above all", east + "agent: {withdrawalBrakePercent: 101}", "/agent/withdrawalBrakePercent"},
	}
}

// TestRefusals gives every contradiction to the chart; the error has to name it.
func TestRefusals(t *testing.T) {
	for _, r := range refusals() {
		t.Run(r.name, func(t *testing.T) {
			v := map[string]any{}
			must(t, yaml.UnmarshalStrict([]byte(r.values), &v))
			_, err := render(v)
			if err == nil || !strings.Contains(err.Error(), r.names) {
				t.Errorf("%s\n is refused with %v, which does not name %s", r.values, err, r.names)
			}
		})
	}
}
