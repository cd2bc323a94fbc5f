package observe

import (
	"slices"
	"time"
)

func apiserverAlerts() []Alert { return slices.Concat(storeAlerts(), exportAlerts(), gatewayAlerts()) }

// storeAlerts are about what the apiserver publishes.
func storeAlerts() []Alert {
	return []Alert{
		{
			Name: "ClustermeshApiserverDown", Severity: Critical, For: 2 * time.Minute,
			Expr:        `up{job=~"clustermesh-apiserver.*"} == 0 or absent(up{job=~"clustermesh-apiserver.*"})`,
			Summary:     "A clustermesh-apiserver cannot be scraped.",
			Description: "{{ $labels.instance }} does not answer. Agents keep what they know, but no change of this cluster reaches any node, its own included.",
		},
		{
			Name: "ClustermeshApiserverNotReady", Severity: Critical, For: 5 * time.Minute,
			Expr:        `clustermesh_ready == 0`,
			Summary:     "A clustermesh-apiserver has not published everything.",
			Description: "{{ $labels.instance }} runs but is not ready; its page /readyz names what is missing. Agents keep what they know.",
		},
		{
			Name: "ClustermeshStoreRebuilt", Severity: Warning,
			Expr:        `increase(clustermesh_store_lives_total[${1h}]) > 1.5`,
			Summary:     "The embedded store failed repeatedly and was rebuilt.",
			Description: "The store of {{ $labels.instance }} has begun {{ printf \"%.0f\" $value }} lives within an hour. Each makes every reader list everything again.",
		},
		{
			Name: "ClustermeshPublishingStalled", Severity: Critical, For: 2 * time.Minute,
			Expr:        `clustermesh_publisher_lag_seconds > $s{30s}`,
			Summary:     "Changes of a cluster do not get into its store.",
			Description: "{{ $labels.instance }} has waited {{ printf \"%.0f\" $value }} s for the store to take a change of {{ $labels.kind }}; nobody sees it until then.",
		},
		{
			Name: "ClustermeshPublishingSlow", Severity: Warning, For: 10 * time.Minute,
			Expr:        `histogram_quantile(0.99, sum without (kind) (rate(clustermesh_publish_duration_seconds_bucket[${5m}]))) > 1`,
			Summary:     "Changes take more than a second to get into the store.",
			Description: "One in a hundred changes of {{ $labels.instance }} waits {{ printf \"%.1f\" $value }} s or longer; milliseconds are usual.",
		},
		{
			Name: "ClustermeshStoreNearQuota", Severity: Warning, For: 15 * time.Minute,
			Expr:        `clustermesh_store_size_bytes / clustermesh_store_quota_bytes > 0.8`,
			Summary:     "The embedded store is nearly full.",
			Description: "The store of {{ $labels.instance }} has {{ $value | humanizePercentage }} of its size; at 100 % it refuses changes.",
		},
	}
}

// exportAlerts are about what it makes of its cluster's objects.
func exportAlerts() []Alert {
	return []Alert{
		{
			Name: "ClustermeshExportProblems", Severity: Warning, For: 15 * time.Minute,
			Expr:        `clustermesh_export_problems > 0`,
			Summary:     "Objects are not exported as their owners want.",
			Description: "{{ $value }} objects of {{ $labels.instance }} are not, or not completely, exported: {{ $labels.reason }}. Events of the Services and /readyz name them.",
		},
		{
			Name: "ClustermeshSourceProblems", Severity: Warning, For: 5 * time.Minute,
			Expr:        `clustermesh_source_problems > 0`,
			Summary:     "A clustermesh-apiserver cannot read its cluster's objects.",
			Description: "{{ $labels.instance }} has {{ $value }} problems with its source. What it has read before stays published and ages.",
		},
		{
			Name: "ClustermeshIdentitiesNearLimit", Severity: Warning, For: 15 * time.Minute,
			Expr:        `sum without (state) (clustermesh_identities) / clustermesh_identities_limit > 0.9`,
			Summary:     "The cluster is about to run out of identities.",
			Description: "{{ $value | humanizePercentage }} of the numbers of {{ $labels.instance }} are in use or in quarantine; pods with new sets of labels will get none.",
		},
		{
			Name: "ClustermeshIdentitiesNotKept", Severity: Warning,
			Expr:        `increase(clustermesh_identity_journal_errors_total[${1h}]) > 0`,
			Summary:     "Identities cannot be kept on disk.",
			Description: "{{ $labels.instance }} cannot write its journal; after a restart pods may have other identities, and policies of other clusters miss them for a while.",
		},
	}
}

// gatewayAlerts are about those who read.
func gatewayAlerts() []Alert {
	return []Alert{
		{
			Name: "ClustermeshCertificateExpires", Severity: Critical, For: time.Minute,
			Expr:        `clustermesh_certificate_remaining_ratio < 0.2 or clustermesh_certificate_expiry_timestamp_seconds{certificate="client-ca"} - time() < $s{30d}`,
			Summary:     "A certificate of the apiserver ends soon.",
			Description: "{{ $labels.certificate }} of {{ $labels.instance }} is in the last fifth of its life, or is a CA with less than 30 days. When it ends nobody can connect.",
		},
		{
			Name: "ClustermeshCertificateNotRenewed", Severity: Warning, For: 10 * time.Minute,
			Expr:        `clustermesh_certificate_renewal_failing == 1`,
			Summary:     "The server's certificate cannot be renewed.",
			Description: "{{ $labels.instance }} fails to renew its certificate in its CA directory and goes on with the old one until that ends.",
		},
		{
			Name: "ClustermeshPeersRefused", Severity: Warning,
			Expr:        `sum without (reason) (increase(clustermesh_gateway_peer_refusals_total[${10m}])) > 100`,
			Summary:     "A peer is refused in numbers.",
			Description: "{{ $labels.instance }} has refused {{ $labels.peer }} {{ printf \"%.0f\" $value }} times in ten minutes: a peer with wrong certificates, with a fault, or an attack.",
		},
		{
			Name: "ClustermeshReadersCutOff", Severity: Warning,
			Expr:        `increase(clustermesh_gateway_refusals_total{reason=~"unread|compacted"}[${1h}]) > 5`,
			Summary:     "Readers are too slow and have to begin anew.",
			Description: "{{ $labels.instance }} has sent {{ printf \"%.0f\" $value }} readers back to the beginning within an hour: {{ $labels.reason }}.",
		},
		{
			Name: "ClustermeshWatchLags", Severity: Warning, For: 2 * time.Minute,
			Expr:        `clustermesh_gateway_watch_lag_revisions > 1000`,
			Summary:     "A reader does not keep up.",
			Description: "The slowest watch of {{ $labels.instance }} is {{ $value }} revisions behind.",
		},
		{
			Name: "ClustermeshPeerFileRefused", Severity: Warning, For: 2 * time.Minute,
			Expr:        `clustermesh_peer_file_problems > 0`,
			Summary:     "A file in the directory of peers is refused.",
			Description: "{{ $value }} files of {{ $labels.instance }} are not followed; the last good state of each stays.",
		},
		{
			Name: "ClustermeshNodesSilent", Severity: Warning, For: 10 * time.Minute,
			Expr:        `clustermesh_agents{state=~"silent|missing|disputed"} > 0`,
			Summary:     "Nodes do not report to their cluster's apiserver, or two report for one.",
			Description: "{{ $value }} nodes of {{ $labels.instance }} are {{ $labels.state }}: no agent runs there, it does not reach its own apiserver, or (disputed) somebody else reports for it.",
		},
		{
			Name: "ClustermeshNobodyImports", Severity: Info, For: time.Hour,
			Expr:        `sum without (peer) (clustermesh_gateway_peer_connections{peer!="local"}) == 0 and ignoring (kind) clustermesh_export_records{kind="services"} > 0`,
			Summary:     "Services are exported and no other cluster reads them.",
			Description: "No reader of another cluster has been connected to {{ $labels.instance }} for an hour.",
		},
	}
}
