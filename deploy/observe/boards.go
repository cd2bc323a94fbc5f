package observe

// Dashboards lists all pages.
func Dashboards() []Dashboard { return []Dashboard{meshBoard(), clusterBoard(), nodeBoard()} }

// lines is a panel of one or more lines; pairs are expressions and legends.
func lines(title, unit, help string, pairs ...string) Panel {
	return Panel{Title: title, Help: help, Kind: Lines, Unit: unit, Queries: queries(pairs)}
}

// now is a panel of one number that is red from red on, 0 for never.
func now(title, unit, help string, red float64, expr string) Panel {
	return Panel{Title: title, Help: help, Kind: Now, Unit: unit, Red: red, Queries: queries([]string{expr, ""})}
}

func queries(pairs []string) []Query {
	var out []Query
	for i := 0; i+1 < len(pairs); i += 2 {
		out = append(out, Query{pairs[i], pairs[i+1]})
	}
	return out
}

func meshBoard() Dashboard {
	return Dashboard{Name: "mesh", Title: "clustermesh / Mesh", Rows: []Row{
		{Title: "Now", Panels: []Panel{
			now("Alerts", "short", "Firing alerts of clustermesh.", 1, `count(ALERTS{alertname=~"Clustermesh.*", alertstate="firing", severity!="info"}) or vector(0)`),
			now("Apiservers not ready", "short", "Apiservers that have not published everything.", 1, `count(clustermesh_ready == 0) or vector(0)`),
			now("Nodes not ready", "short", "Nodes whose maps do not reflect their own cluster.", 1, `count(clustermesh_agent_ready == 0) or vector(0)`),
			now("Links not synced", "short", "Pairs of a node and a cluster that it does not follow.", 1, `count(clustermesh_agent_cluster_state{state!="synced"}) or vector(0)`),
			now("Dead clusters", "short", "Clusters that some node takes for dead.", 1, `count(count by (cluster) (clustermesh_agent_cluster_alive == 0)) or vector(0)`),
			now("Nodes with services left out", "short", "Nodes whose maps could not take a service.", 1, `count(clustermesh_agent_services_failed > 0) or vector(0)`),
		}},
		{Title: "Clusters, as the nodes see them", Panels: []Panel{
			lines("Nodes by state of each cluster", "short", "How many nodes are in which state towards a cluster.", `count by (cluster, state) (clustermesh_agent_cluster_state)`, "{{cluster}} {{state}}"),
			lines("Oldest knowledge", "s", "For how long the node that is worst off has not followed a cluster.", `max by (cluster) (clustermesh_agent_cluster_data_age_seconds)`, "{{cluster}}"),
			lines("Heartbeats", "s", "Time since the last heartbeat, at the node that is worst off; a heartbeat is due each minute.", `max by (cluster) (clustermesh_agent_cluster_heartbeat_age_seconds)`, "{{cluster}}"),
			lines("Round trip", "s", "Of probes, damped, median of all nodes: by it the nearest clusters are known.", `quantile by (cluster) (0.5, clustermesh_agent_cluster_rtt_seconds)`, "{{cluster}}"),
			lines("Backends", "short", "That a cluster says it has.", `max by (cluster) (clustermesh_agent_cluster_backends)`, "{{cluster}}"),
			lines("Backends held", "short", "Withdrawn at once and still in use.", `max by (cluster) (clustermesh_agent_cluster_held_backends)`, "{{cluster}}"),
		}},
		{Title: "Traffic", Panels: []Panel{
			lines("New connections by cluster of their backend", "ops", "Connects and datagrams of all nodes.", `sum by (from, cluster) (rate(clustermesh_datapath_cluster_hits_total[$__rate_interval]))`, "{{from}} to {{cluster}}"),
			lines("Refused for want of a backend", "ops", "Connects and datagrams of all nodes.", `sum(rate(clustermesh_datapath_lookups_total{result="refused"}[$__rate_interval]))`, "refused"),
			lines("Records refused", "ops", "What clusters say that is not accepted, by cluster and reason.", `sum by (cluster, reason) (rate(clustermesh_agent_cluster_rejections_total[$__rate_interval]))`, "{{cluster}} {{reason}}"),
		}},
		{Title: "From a change to the maps", Panels: []Panel{
			lines("Into the store", "s", "Time from a change of a record until the store had it.",
				`histogram_quantile(0.5, sum by (le) (rate(clustermesh_publish_duration_seconds_bucket[$__rate_interval])))`, "median",
				`histogram_quantile(0.99, sum by (le) (rate(clustermesh_publish_duration_seconds_bucket[$__rate_interval])))`, "p99"),
			lines("Into a node's maps", "s", "Time to merge a service and write it, on all nodes.",
				`histogram_quantile(0.5, sum by (le) (rate(clustermesh_agent_service_update_duration_seconds_bucket[$__rate_interval])))`, "median",
				`histogram_quantile(0.99, sum by (le) (rate(clustermesh_agent_service_update_duration_seconds_bucket[$__rate_interval])))`, "p99"),
			lines("Until acknowledged", "s", "From a cluster's stamp to all before it being in a node's maps, by the two clocks.",
				`histogram_quantile(0.5, sum by (le) (rate(clustermesh_agent_propagation_lag_seconds_bucket[$__rate_interval])))`, "median",
				`histogram_quantile(0.99, sum by (le) (rate(clustermesh_agent_propagation_lag_seconds_bucket[$__rate_interval])))`, "p99"),
			lines("Acknowledged age", "s", "Time since the newest stamp that is in a node's maps, at the node that is worst off.", `max by (cluster) (clustermesh_agent_cluster_acknowledged_age_seconds)`, "{{cluster}}"),
			lines("Nodes by what their agents do", "short", "Reporting, silent, or exported without ever having reported.", `sum by (state) (clustermesh_agents)`, "{{state}}"),
			lines("To know all of a cluster", "s", "From beginning to connect, at the slowest node.", `max by (cluster) (clustermesh_agent_cluster_sync_duration_seconds)`, "{{cluster}}"),
		}},
	}}
}

func clusterBoard() Dashboard {
	return Dashboard{Name: "cluster", Title: "clustermesh / Cluster", Instance: "clustermesh_ready", Rows: []Row{
		{Title: "Now", Panels: []Panel{
			now("Not ready", "short", "Apiservers that have not published everything.", 1, `count(clustermesh_ready{instance=~"$instance"} == 0) or vector(0)`),
			now("Rebuilt stores", "short", "Lives of stores beyond the first, within an hour.", 2, `sum(increase(clustermesh_store_lives_total{instance=~"$instance"}[1h]))`),
			now("Export problems", "short", "Objects that are not exported as their owners want.", 1, `sum(clustermesh_export_problems{instance=~"$instance"})`),
			now("Source problems", "short", "What keeps the apiserver from reading its cluster.", 1, `sum(clustermesh_source_problems{instance=~"$instance"})`),
			{Title: "Certificate's life left", Help: "The least of all.", Kind: Fill, Unit: "percentunit", Queries: queries([]string{`min(clustermesh_certificate_remaining_ratio{instance=~"$instance"})`, ""})},
			now("First certificate ends in", "s", "The server's, or the last CA of readers.", 0, `min(clustermesh_certificate_expiry_timestamp_seconds{instance=~"$instance"}) - time()`),
		}},
		{Title: "Export", Panels: []Panel{
			lines("Objects read", "short", "By kind.", `sum by (kind) (clustermesh_source_objects{instance=~"$instance"})`, "{{kind}}"),
			lines("Records exported", "short", "By kind.", `sum by (kind) (clustermesh_export_records{instance=~"$instance"})`, "{{kind}}"),
			lines("Export problems", "short", "By reason; Events of the Services name them.", `sum by (reason) (clustermesh_export_problems{instance=~"$instance"}) > 0`, "{{reason}}"),
			lines("Writes", "ops", "That the store acknowledged.", `sum by (kind, op) (rate(clustermesh_publisher_operations_total{instance=~"$instance"}[$__rate_interval]))`, "{{kind}} {{op}}"),
			lines("Waiting for the store", "s", "The oldest change that it has not acknowledged.", `max by (kind) (clustermesh_publisher_lag_seconds{instance=~"$instance"})`, "{{kind}}"),
			lines("Failed writes", "ops", "Attempts that are repeated.", `sum by (kind) (rate(clustermesh_publisher_errors_total{instance=~"$instance"}[$__rate_interval]))`, "{{kind}}",
				`sum(rate(clustermesh_announcement_errors_total{instance=~"$instance"}[$__rate_interval]))`, "announcement"),
		}},
		{Title: "Store", Panels: []Panel{
			lines("Size", "bytes", "Of the database file, and where it gives up.", `clustermesh_store_size_bytes{instance=~"$instance"}`, "{{instance}} size", `clustermesh_store_quota_bytes{instance=~"$instance"}`, "{{instance}} quota"),
			lines("Revisions", "ops", "Per second.", `deriv(clustermesh_store_revision{instance=~"$instance"}[$__rate_interval])`, "{{instance}}"),
			lines("History for watches", "bytes", "Memory of it.", `clustermesh_store_ring_bytes{instance=~"$instance"}`, "{{instance}}"),
		}},
		{Title: "Readers", Panels: []Panel{
			lines("Connections by peer", "short", "local are the cluster's own agents, other everybody without a file of their own.", `sum by (peer) (clustermesh_gateway_peer_connections{instance=~"$instance"})`, "{{peer}}"),
			lines("Watches by peer", "short", "", `sum by (peer) (clustermesh_gateway_peer_watches{instance=~"$instance"})`, "{{peer}}"),
			lines("Slowest watch", "short", "Revisions that it has not been sent yet.", `max by (instance) (clustermesh_gateway_watch_lag_revisions{instance=~"$instance"})`, "{{instance}}"),
			lines("Requests", "ops", "By kind.", `sum by (kind) (rate(clustermesh_gateway_requests_total{instance=~"$instance"}[$__rate_interval]))`, "{{kind}}"),
			lines("Refusals by reason", "ops", "Requests and connections that were refused or ended.", `sum by (reason) (rate(clustermesh_gateway_refusals_total{instance=~"$instance"}[$__rate_interval])) > 0`, "{{reason}}",
				`sum by (reason) (rate(clustermesh_gateway_handshake_failures_total{instance=~"$instance"}[$__rate_interval])) > 0`, "handshake {{reason}}"),
			lines("Refusals by peer", "ops", "", `sum by (peer) (rate(clustermesh_gateway_peer_refusals_total{instance=~"$instance"}[$__rate_interval]))`, "{{peer}}"),
		}},
		{Title: "Process", Panels: []Panel{
			lines("Processor", "percentunit", "Cores in use.", `rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval])`, "{{instance}}"),
			lines("Memory", "bytes", "Resident.", `process_resident_memory_bytes{instance=~"$instance"}`, "{{instance}}"),
			lines("Identities", "short", "Numbers in use and in quarantine, and how many there are.", `clustermesh_identities{instance=~"$instance"}`, "{{instance}} {{state}}", `clustermesh_identities_limit{instance=~"$instance"}`, "{{instance}} limit"),
		}},
	}}
}

func nodeBoard() Dashboard {
	return Dashboard{Name: "node", Title: "clustermesh / Node data path", Instance: "clustermesh_agent_ready", Rows: []Row{
		{Title: "Now", Panels: []Panel{
			now("Not ready", "short", "Nodes whose maps do not reflect their own cluster.", 1, `count(clustermesh_agent_ready{instance=~"$instance"} == 0) or vector(0)`),
			now("Services left out", "short", "That the maps could not take.", 1, `sum(clustermesh_agent_services_failed{instance=~"$instance"})`),
			now("Faults", "short", "Pins and attachments that cannot be put right.", 1, `sum(clustermesh_agent_faults{instance=~"$instance"})`),
			now("Repairs", "short", "Pins and attachments that were put right within an hour.", 4, `sum(increase(clustermesh_agent_repairs_total{instance=~"$instance"}[1h]))`),
			{Title: "Frontends", Help: "Part of the map that is in use, on the fullest node.", Kind: Fill, Unit: "percentunit", Red: 0.85, Queries: queries([]string{`max(clustermesh_datapath_frontends{instance=~"$instance"} / clustermesh_datapath_frontends_capacity{instance=~"$instance"})`, ""})},
			{Title: "Records", Help: "Part of the map that is in use, on the fullest node.", Kind: Fill, Unit: "percentunit", Red: 0.85, Queries: queries([]string{`max(clustermesh_datapath_records{instance=~"$instance"} / clustermesh_datapath_records_capacity{instance=~"$instance"})`, ""})},
		}},
		{Title: "Data path", Panels: []Panel{
			lines("Connects and datagrams", "ops", "By what became of them.", `sum by (result) (rate(clustermesh_datapath_lookups_total{instance=~"$instance"}[$__rate_interval]))`, "{{result}}"),
			lines("By cluster of the backend", "ops", "", `sum by (cluster) (rate(clustermesh_datapath_cluster_hits_total{instance=~"$instance"}[$__rate_interval]))`, "{{cluster}}"),
			lines("Other choices than drawing", "ops", "By reason.", `sum by (reason) (rate(clustermesh_datapath_reasons_total{instance=~"$instance"}[$__rate_interval]))`, "{{reason}}"),
			lines("Repeated draws and forgotten sockets", "ops", "", `sum(rate(clustermesh_datapath_retries_total{instance=~"$instance"}[$__rate_interval]))`, "retries", `sum(rate(clustermesh_datapath_forgotten_total{instance=~"$instance"}[$__rate_interval]))`, "forgotten"),
			lines("Frontends", "short", "In the maps.", `clustermesh_datapath_frontends{instance=~"$instance"}`, "{{instance}}"),
			lines("Records", "short", "In the maps.", `clustermesh_datapath_records{instance=~"$instance"}`, "{{instance}}"),
		}},
		{Title: "Updates", Panels: []Panel{
			lines("Duration", "s", "To merge a changed service and write it.",
				`histogram_quantile(0.5, sum by (le) (rate(clustermesh_agent_service_update_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "median",
				`histogram_quantile(0.99, sum by (le) (rate(clustermesh_agent_service_update_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "p99"),
			lines("Rate", "ops", "By result.", `sum by (result) (rate(clustermesh_agent_service_update_duration_seconds_count{instance=~"$instance"}[$__rate_interval]))`, "{{result}}"),
			lines("Repairs", "ops", "Of pins and attachments, by kind.", `sum by (kind) (rate(clustermesh_agent_repairs_total{instance=~"$instance"}[$__rate_interval]))`, "{{kind}}"),
		}},
		{Title: "Clusters", Panels: []Panel{
			lines("State", "short", "", `sum by (cluster, state) (clustermesh_agent_cluster_state{instance=~"$instance"})`, "{{cluster}} {{state}}"),
			lines("Age of what is known", "s", "0 while a cluster is followed.", `max by (cluster) (clustermesh_agent_cluster_data_age_seconds{instance=~"$instance"})`, "{{cluster}}"),
			lines("Lost connections", "ops", "", `sum by (cluster) (rate(clustermesh_agent_cluster_failures_total{instance=~"$instance"}[$__rate_interval]))`, "{{cluster}}"),
			lines("Round trip", "s", "Of probes, by kind of target.", `max by (cluster, target) (clustermesh_agent_probe_rtt_seconds{instance=~"$instance"})`, "{{cluster}} {{target}}"),
			lines("Data path", "short", "Nodes by state of the path to a cluster's backends.", `sum by (cluster, state) (clustermesh_agent_cluster_data_path{instance=~"$instance"})`, "{{cluster}} {{state}}",
				`sum by (cluster, state) (clustermesh_agent_cluster_node_path{instance=~"$instance"})`, "{{cluster}} nodes {{state}}"),
			lines("Probes", "ops", "By result.", `sum by (result) (rate(clustermesh_agent_probes_total{instance=~"$instance"}[$__rate_interval]))`, "{{result}}"),
		}},
		{Title: "Process", Panels: []Panel{
			lines("Processor", "percentunit", "Cores in use.", `rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval])`, "{{instance}}"),
			lines("Memory", "bytes", "Resident.", `process_resident_memory_bytes{instance=~"$instance"}`, "{{instance}}"),
			lines("Capabilities", "short", "0, or 1 before Linux 5.19.", `clustermesh_agent_capabilities_held{instance=~"$instance"}`, "{{instance}}"),
		}},
	}}
}
