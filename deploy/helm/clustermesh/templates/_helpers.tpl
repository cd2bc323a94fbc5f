{{/* Labels of every object; the argument is a list of the root and the component. */}}
{{- define "clustermesh.labels" -}}
{{ include "clustermesh.selector" . }}
app.kubernetes.io/part-of: clustermesh
{{- with index . 0 }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
{{- end }}

{{- define "clustermesh.selector" -}}
app.kubernetes.io/name: clustermesh-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- define "clustermesh.name" -}}
{{ printf "%s-%s" ((index . 0).Release.Name | trunc 40 | trimSuffix "-") (index . 1) }}
{{- end }}

{{- define "clustermesh.image" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "clustermesh.serverSecret" -}}
{{ .Values.tls.existingServerSecret | default (include "clustermesh.name" (list . "server-cert")) }}
{{- end }}

{{- define "clustermesh.localSecret" -}}
{{ .Values.tls.existingLocalSecret | default (include "clustermesh.name" (list . "local-cert")) }}
{{- end }}

{{/* The name of the apiserver's Service for the cluster's own agents. */}}
{{- define "clustermesh.ownHost" -}}
{{ include "clustermesh.name" (list . "apiserver") }}.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Which cluster a process belongs to, from one place for both of them. */}}
{{- define "clustermesh.clusterEnv" -}}
{{- $settings := include "clustermesh.name" (list . "settings") -}}
{{- range $i, $key := list "cluster-name" "cluster-id" "max-connected-clusters" }}
{{- if $i }}{{ "\n" }}{{ end -}}
- name: CLUSTERMESH_{{ $key | upper | replace "-" "_" }}
  valueFrom:
    configMapKeyRef: {name: {{ $settings }}, key: {{ $key }}}
{{- end }}
{{- end }}

{{/* Restarts pods when what they read only at their start changes. */}}
{{- define "clustermesh.checksum" -}}
clustermesh.io/settings: {{ toJson .Values.cluster | sha256sum | trunc 16 | quote }}
{{- end }}

{{- define "clustermesh.sessionAffinity" -}}
{{ .Values.apiserver.service.sessionAffinity | default (gt (int .Values.apiserver.replicas) 1 | ternary "ClientIP" "None") }}
{{- end }}

{{- define "clustermesh.hostNetwork" -}}
{{- if or .Values.agent.hostNetwork .Values.agent.devices.enabled }}true{{ end -}}
{{- end }}

{{/* On the node's network, only the node itself reaches the agent's pages. */}}
{{- define "clustermesh.agentLoopback" -}}
{{- if and (include "clustermesh.hostNetwork" .) (not .Values.agent.metricsOnNode) }}127.0.0.1{{ end -}}
{{- end }}
