package observe

import (
	"slices"
	"time"
)

func agentAlerts() []Alert { return slices.Concat(clusterAlerts(), wordAlerts(), nodeAlerts()) }

// clusterAlerts are about how an agent reaches clusters.
func clusterAlerts() []Alert {
	return []Alert{
		{
			Name: "ClustermeshClusterOutOfContact", Severity: Warning, For: 3 * time.Minute,
			Expr:        `clustermesh_agent_cluster_data_age_seconds > $s{2m}`,
			Summary:     "An agent does not follow a cluster.",
			Description: "{{ $labels.instance }} has had no contact with {{ $labels.cluster }} for {{ $value | humanizeDuration }}. Its backends stay in use as they were last known.",
		},
		{
			Name: "ClustermeshNoHeartbeat", Severity: Warning,
			Expr:        `clustermesh_agent_cluster_heartbeat_age_seconds > $s{3m}`,
			Summary:     "A cluster's apiserver gives no heartbeat.",
			Description: "{{ $labels.instance }} has heard no heartbeat of {{ $labels.cluster }} for {{ $value | humanizeDuration }}; there should be one a minute.",
		},
		{
			Name: "ClustermeshClusterRefused", Severity: Critical, For: time.Minute,
			Expr:        `clustermesh_agent_cluster_state{state="refused"} == 1`,
			Summary:     "A cluster's name or id is not accepted.",
			Description: "{{ $labels.instance }} refuses {{ $labels.cluster }}: its id is another one's, or not the one that is configured.",
		},
		{
			Name: "ClustermeshClusterDead", Severity: Critical,
			Expr:        `clustermesh_agent_cluster_alive == 0`,
			Summary:     "Neither a cluster's apiserver nor its backends answer.",
			Description: "{{ $labels.instance }} takes {{ $labels.cluster }} for dead; new connections go to other clusters' backends where there are any.",
		},
		{
			Name: "ClustermeshDataPathFails", Severity: Critical, For: 2 * time.Minute,
			Expr:        `clustermesh_agent_cluster_data_path{state="failing"} == 1`,
			Summary:     "A cluster's backends do not answer probes.",
			Description: "None of the backends of {{ $labels.cluster }} answers {{ $labels.instance }}. As long as its apiserver does, they stay in use and connections to them fail.",
		},
		{
			Name: "ClustermeshClusterFlaps", Severity: Warning,
			Expr:        `increase(clustermesh_agent_cluster_syncs_total[${1h}]) > 5`,
			Summary:     "The connection to a cluster does not last.",
			Description: "{{ $labels.instance }} has connected to {{ $labels.cluster }} {{ printf \"%.0f\" $value }} times within an hour.",
		},
	}
}

// wordAlerts are about what clusters and operators say to it.
func wordAlerts() []Alert {
	return []Alert{
		{
			Name: "ClustermeshPropagationSlow", Severity: Warning, For: 10 * time.Minute,
			Expr:        `histogram_quantile(0.99, rate(clustermesh_agent_propagation_lag_seconds_bucket[${5m}])) > 2`,
			Summary:     "Changes of a cluster take seconds to get into a node's maps.",
			Description: "One in a hundred changes of {{ $labels.cluster }} takes {{ printf \"%.1f\" $value }} s or longer until {{ $labels.instance }} has it in its maps, by the two clocks.",
		},
		{
			Name: "ClustermeshMapsBehind", Severity: Warning, For: 3 * time.Minute,
			Expr:        `clustermesh_agent_cluster_acknowledged_age_seconds > $s{1m} unless on (instance, cluster) clustermesh_agent_cluster_data_age_seconds > 0`,
			Summary:     "A node is connected to a cluster and does not get on.",
			Description: "What {{ $labels.instance }} has of {{ $labels.cluster }} in its maps is {{ $value | humanizeDuration }} old although the two are in contact, or their clocks differ.",
		},
		{
			Name: "ClustermeshRecordsRefused", Severity: Warning,
			Expr:        `increase(clustermesh_agent_cluster_rejections_total{reason!="policy"}[${15m}]) > 0`,
			Summary:     "A cluster says what is not accepted of it.",
			Description: "{{ $labels.instance }} refuses records of {{ $labels.cluster }}: {{ $labels.reason }}. A fault of that cluster, a range that is not configured, or an attempt at traffic that is not its own.",
		},
		{
			Name: "ClustermeshBrakeHolds", Severity: Critical,
			Expr:        `clustermesh_agent_cluster_held_backends > 0`,
			Summary:     "A cluster withdrew so much at once that it is not believed.",
			Description: "{{ $labels.instance }} still uses {{ $value }} backends that {{ $labels.cluster }} has withdrawn. If they are really gone, connections to them fail until the hold time ends.",
		},
		{
			Name: "ClustermeshClusterFileRefused", Severity: Warning, For: 2 * time.Minute,
			Expr:        `clustermesh_agent_cluster_file_problems > 0`,
			Summary:     "A file that configures a cluster is refused.",
			Description: "{{ $value }} files of {{ $labels.instance }} are not followed; the last good state of each stays.",
		},
		{
			Name: "ClustermeshAnnotationsNotFollowed", Severity: Info, For: 15 * time.Minute,
			Expr:        `clustermesh_agent_services_with_problems > 0`,
			Summary:     "Annotations of services are wrong.",
			Description: "{{ $value }} services have annotations that {{ $labels.instance }} does not follow.",
		},
	}
}

// nodeAlerts are about the node itself.
func nodeAlerts() []Alert {
	return []Alert{
		{
			Name: "ClustermeshAgentDown", Severity: Warning, For: 5 * time.Minute,
			Expr:        `up{job=~"clustermesh-agent.*"} == 0`,
			Summary:     "A clustermesh-agent cannot be scraped.",
			Description: "{{ $labels.instance }} does not answer. The node goes on balancing with what was last known; no change reaches it.",
		},
		{
			Name: "ClustermeshAgentNotReady", Severity: Warning, For: 5 * time.Minute,
			Expr:        `clustermesh_agent_ready == 0`,
			Summary:     "A node does not know its own cluster.",
			Description: "{{ $labels.instance }} has not heard its own cluster, in this life or a former one: global services are not balanced on that node.",
		},
		{
			Name: "ClustermeshServicesNotProgrammed", Severity: Critical, For: time.Minute,
			Expr:        `clustermesh_agent_services_failed > 0`,
			Summary:     "Services do not fit into the node's maps.",
			Description: "{{ $value }} services of {{ $labels.instance }} stay as they were, or are missing, because the eBPF maps could not take them.",
		},
		{
			Name: "ClustermeshMapsNearlyFull", Severity: Warning, For: 10 * time.Minute,
			Expr:        `clustermesh_datapath_frontends / clustermesh_datapath_frontends_capacity > 0.85 or clustermesh_datapath_records / clustermesh_datapath_records_capacity > 0.85`,
			Summary:     "The node's maps are nearly full.",
			Description: "{{ $value | humanizePercentage }} of the eBPF maps of {{ $labels.instance }} are in use; what does not fit is not balanced.",
		},
		{
			Name: "ClustermeshPinsRepaired", Severity: Warning,
			Expr:        `sum without (kind) (increase(clustermesh_agent_repairs_total[${1h}])) > 3`,
			Summary:     "Somebody keeps removing the agent's programs or pins.",
			Description: "{{ $labels.instance }} has put back {{ printf \"%.0f\" $value }} pins and attachments within an hour. Between removal and repair services are not balanced.",
		},
		{
			Name: "ClustermeshPinsBroken", Severity: Critical, For: time.Minute,
			Expr:        `clustermesh_agent_faults > 0`,
			Summary:     "Pins or attachments of the agent cannot be repaired.",
			Description: "{{ $value }} pins or attachments of {{ $labels.instance }} are not as they should be, and the agent cannot put them right.",
		},
		{
			Name: "ClustermeshCapabilitiesHeld", Severity: Critical, For: 5 * time.Minute,
			Expr:        `clustermesh_agent_capabilities_held > 1`,
			Summary:     "An agent reads remote clusters with privileges.",
			Description: "{{ $labels.instance }} holds {{ $value }} Linux capabilities while it reads what other clusters say.",
		},
		{
			Name: "ClustermeshUpdatesSlow", Severity: Warning, For: 10 * time.Minute,
			Expr:        `histogram_quantile(0.99, sum without (result) (rate(clustermesh_agent_service_update_duration_seconds_bucket[${5m}]))) > 0.1`,
			Summary:     "Changes of services take long to get into the node's maps.",
			Description: "One in a hundred updates of {{ $labels.instance }} takes {{ printf \"%.2f\" $value }} s or longer; less than a millisecond is usual.",
		},
		{
			Name: "ClustermeshConnectionsRefused", Severity: Critical, For: 5 * time.Minute,
			Expr:        `rate(clustermesh_datapath_lookups_total{result="refused"}[${5m}]) > 0`,
			Summary:     "Connections to global services are refused for want of backends.",
			Description: "{{ $labels.instance }} refuses {{ printf \"%.1f\" $value }} connections or datagrams a second: no cluster has a backend for what they go to.",
		},
	}
}
