// Package observe describes what an operator sees of a mesh besides logs: the
// inventory of metrics, alert rules with their runbooks, and dashboards. What
// Prometheus and Grafana read is generated from here by its test with -update:
// docs/metrics.md, deploy/alerts, deploy/dashboards, and the copies that the
// Helm chart carries.
package observe
