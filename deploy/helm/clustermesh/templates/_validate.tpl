{{/* What the schema cannot say, because it is about two values that differ. */}}
{{- define "clustermesh.validate" -}}
{{- if has .Values.cluster.name .Values.clusters -}}
{{ fail (printf "clusters: %q is this cluster itself, which its agents know already; leave it out" .Values.cluster.name) }}
{{- end -}}
{{- if hasKey .Values.agent.accepts .Values.cluster.name -}}
{{ fail (printf "agent.accepts: %q is this cluster itself; only remote clusters are restricted" .Values.cluster.name) }}
{{- end -}}
{{- $ours := list (include "clustermesh.serverSecret" .) (include "clustermesh.localSecret" .) .Values.peers.secret -}}
{{- range .Values.clusters -}}
{{- if has (printf "clustermesh-%s" .) $ours -}}
{{ fail (printf "clusters: the Secret clustermesh-%s of cluster %q has another meaning here; choose other names in tls.existingServerSecret, tls.existingLocalSecret and peers.secret" . .) }}
{{- end -}}
{{- end -}}
{{- end }}
