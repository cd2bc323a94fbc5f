{{- define "clustermesh.agentImage" -}}
image: {{ include "clustermesh.image" (list . .Values.agent.image) | quote }}
imagePullPolicy: {{ .Values.agent.image.pullPolicy }}
{{- end }}

{{- define "clustermesh.agentArgs" -}}
{{- $a := .Values.agent -}}
- --clusters=/etc/clustermesh/clusters
{{- if $a.accepts }}
- --peers=/etc/clustermesh/accepts
{{- end }}
- --bpffs=/run/bpf
- --cgroup=/run/cgroup
- --state-dir=/var/run/clustermesh
- --api-socket=/var/run/clustermesh/agent.sock
- --http={{ include "clustermesh.agentLoopback" . }}:9964
{{- range $a.nodePortAddresses }}
- --node-port-addresses={{ . }}
{{- end }}
{{- if ne $a.hostNetns "initial" }}
- --host-netns={{ $a.hostNetns }}
{{- end }}
{{- range $a.denyCIDRs }}
- --deny-cidr={{ . }}
{{- end }}
- --protected-namespaces={{ join "," $a.protectedNamespaces }}
{{- with int $a.withdrawalBrakePercent }}
- --withdrawal-brake-percent={{ . }}
{{- end }}
{{- if not $a.probe.enabled }}
- --probe=false
{{- else }}
{{- if ne $a.probe.interval "200ms" }}
- --probe-interval={{ $a.probe.interval }}
{{- end }}
{{- with int $a.probe.nodePort }}
- --probe-node-port={{ . }}
{{- end }}
{{- end }}
{{- with int $a.maxFrontends }}
- --max-frontends={{ . }}
{{- end }}
{{- with int $a.maxRecords }}
- --max-records={{ . }}
{{- end }}
- --log-level={{ $a.log.level }}
- --log-format={{ $a.log.format }}
{{- end }}

{{- define "clustermesh.agentSeccomp" -}}
seccompProfile:
  type: {{ .Values.agent.seccomp.type }}
  {{- with .Values.agent.seccomp.localhostProfile }}
  localhostProfile: {{ . }}
  {{- end }}
{{- end }}

{{/* What loading and attaching eBPF programs takes. The agent drops all three
before it reads anything of another cluster. */}}
{{- define "clustermesh.agentRights" -}}
securityContext:
  runAsUser: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL], add: [BPF, NET_ADMIN, PERFMON]}
{{- end }}

{{- define "clustermesh.bareRights" -}}
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The bpf file system is not at its usual place, because the profile that
container runtimes give AppArmor forbids to write there. cgroup2 is only looked
up, which a mount that cannot be written allows. */}}
{{- define "clustermesh.agentMounts" -}}
- {name: bpffs, mountPath: /run/bpf}
- {name: cgroup, mountPath: /run/cgroup, readOnly: true}
- {name: run, mountPath: /var/run/clustermesh}
{{- end }}

{{- define "clustermesh.agentVolumes" -}}
{{- $a := .Values.agent -}}
{{- if not $a.cleanup -}}
- name: clusters
  projected:
    defaultMode: 0400
    sources:
    {{- include "clustermesh.clusterSources" . | nindent 4 }}
{{- if $a.accepts }}
- name: accepts
  configMap: {name: {{ include "clustermesh.name" (list . "accepts") }}, defaultMode: 0400}
{{- end }}
{{ end -}}
# A directory of our own: the pins of others are out of the agent's reach.
- name: bpffs
  hostPath: {path: {{ $a.bpffs }}/clustermesh, type: DirectoryOrCreate}
- name: cgroup
  hostPath: {path: {{ $a.cgroup }}, type: Directory}
- name: run
  hostPath: {path: {{ $a.runDir }}, type: DirectoryOrCreate}
{{- end }}

{{/* The agents' --clusters: the own cluster's file with what it names, then the
others', which may come later. */}}
{{- define "clustermesh.clusterSources" -}}
- configMap: {name: {{ include "clustermesh.name" (list . "own-cluster") }}}
- secret:
    name: {{ include "clustermesh.localSecret" . }}
    items:
    - {key: ca.crt, path: own-cluster-ca.crt}
    - {key: tls.crt, path: own-cluster.crt}
    - {key: tls.key, path: own-cluster.key}
{{- range .Values.clusters }}
- secret: {name: clustermesh-{{ . }}, optional: true}
{{- end }}
{{- with .Values.cilium }}
{{- if .secret }}
- secret: {name: {{ .secret }}, optional: true}
{{- range $prefix, $name := dict "common" .remoteCertSecret "local" .localCertSecret }}
{{- if $name }}
- secret:
    name: {{ $name }}
    optional: true
    items:
    - {key: ca.crt, path: {{ $prefix }}-etcd-client-ca.crt}
    - {key: tls.crt, path: {{ $prefix }}-etcd-client.crt}
    - {key: tls.key, path: {{ $prefix }}-etcd-client.key}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
