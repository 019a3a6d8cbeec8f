{{/* Labels of every object; call with the root. */}}
{{- define "lockkeeper.labels" -}}
app.kubernetes.io/name: lockkeeper
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "lockkeeper.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{ .Values.image.repository }}{{ if hasPrefix "sha256:" $tag }}@{{ else }}:{{ end }}{{ $tag }}
{{- end }}

{{/* The Secret of the chart's own store. */}}
{{- define "lockkeeper.storeSecret" -}}
{{- $named := list .Values.store.s3.credentialsSecret .Values.store.gcs.credentialsSecret .Values.store.azure.credentialsSecret | compact | first -}}
{{ $named | default (first (default list .Values.store.secretNames)) | default "" }}
{{- end }}

{{/* Which of the four places the chart's own store is: its name, or nothing. */}}
{{- define "lockkeeper.storePlaces" -}}
{{- $store := .Values.store -}}
{{- $places := list -}}
{{- if $store.s3.bucket }}{{ $places = append $places "s3" }}{{ end -}}
{{- if $store.gcs.bucket }}{{ $places = append $places "gcs" }}{{ end -}}
{{- if $store.azure.container }}{{ $places = append $places "azure" }}{{ end -}}
{{- if $store.directory.path }}{{ $places = append $places "directory" }}{{ end -}}
{{ join "," $places }}
{{- end }}

{{/* One more object with the labels and annotations of ours. Call with (dict "root" $ "object" $o "annotations" $a). */}}
{{- define "lockkeeper.adopt" -}}
{{- $meta := .object.metadata -}}
{{- $_ := set $meta "labels" (merge (default dict $meta.labels) (include "lockkeeper.labels" .root | fromYaml)) -}}
{{- with .annotations }}{{ $_ := set $meta "annotations" (merge (default dict $meta.annotations) .) }}{{ end -}}
{{ toYaml .object }}
{{- end }}

{{/* What agent and guard share: they look at the same host with the same hands. Call each with the root. */}}
{{- define "lockkeeper.hostSecurity" -}}
# Root without privilege: root's files, and no capability but the three to read and replace them.
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: [DAC_OVERRIDE, CHOWN, FOWNER]
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "lockkeeper.hostMounts" -}}
# The directory above manifests/: its rename(2) must stay within one mount, and pki/ lies beside it.
- {name: kubernetes, mountPath: /etc/kubernetes}
- {name: journal, mountPath: /var/lib/lockkeeper}
# The directory, not the socket: a restarted runtime makes a new socket.
- name: cri
  mountPath: {{ .Values.agent.criSocketDir }}
  mountPropagation: {{ .Values.agent.criMountPropagation }}
- {name: pod-logs, mountPath: /var/log/pods, readOnly: true}
{{- with .Values.agent.etcdDataDir }}
# A restore exchanges etcd's data by renames within it.
- {name: etcd-data, mountPath: {{ . }}}
{{- end }}
{{- end }}

{{- define "lockkeeper.hostVolumes" -}}
- name: kubernetes
  hostPath: {path: /etc/kubernetes, type: Directory}
- name: journal
  hostPath: {path: /var/lib/lockkeeper, type: DirectoryOrCreate}
- name: cri
  hostPath: {path: {{ .Values.agent.criSocketDir }}, type: Directory}
- name: pod-logs
  hostPath: {path: /var/log/pods, type: DirectoryOrCreate}
{{- with .Values.agent.etcdDataDir }}
- name: etcd-data
  hostPath: {path: {{ . }}, type: DirectoryOrCreate}
{{- end }}
{{- end }}

{{/* A static pod, which the agent puts beside the components' manifests while it changes an API server. The kubelet
     starts it with no API: it may refer to no Secret, ConfigMap or ServiceAccount. */}}
{{- define "lockkeeper.guard" -}}
apiVersion: v1
kind: Pod
metadata:
  name: lockkeeper-guard
  namespace: kube-system
  labels:
    app.kubernetes.io/name: lockkeeper
    app.kubernetes.io/component: guard
spec:
  priorityClassName: system-node-critical
  priority: 2000001000
  hostNetwork: true
  enableServiceLinks: false
  terminationGracePeriodSeconds: 10
  containers:
  - name: lockkeeper-guard
    image: {{ include "lockkeeper.image" . }}
    # It is there: the agent runs from it.
    imagePullPolicy: IfNotPresent
    args:
    - guard
    {{- with .Values.agent.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    env:
    - name: NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    {{- with .Values.agent.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    securityContext: {{- include "lockkeeper.hostSecurity" . | nindent 6 }}
    resources: {{- toYaml .Values.agent.guard.resources | nindent 6 }}
    volumeMounts: {{- include "lockkeeper.hostMounts" . | nindent 4 }}
  volumes: {{- include "lockkeeper.hostVolumes" . | nindent 2 }}
{{- end }}
