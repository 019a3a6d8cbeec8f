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
{{ .Values.store.s3.credentialsSecret | default (first .Values.store.secretNames) }}
{{- end }}

{{/* One more object with the labels and annotations of ours. Call with (dict "root" $ "object" $o "annotations" $a). */}}
{{- define "lockkeeper.adopt" -}}
{{- $meta := .object.metadata -}}
{{- $_ := set $meta "labels" (merge (default dict $meta.labels) (include "lockkeeper.labels" .root | fromYaml)) -}}
{{- with .annotations }}{{ $_ := set $meta "annotations" (merge (default dict $meta.annotations) .) }}{{ end -}}
{{ toYaml .object }}
{{- end }}
