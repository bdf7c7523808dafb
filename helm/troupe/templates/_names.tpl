{{/* Names, labels, images: what every object carries. */}}
{{- define "troupe.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "troupe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "troupe.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* (dict "root" $ "component" "gateway" "pool" "") */}}
{{- define "troupe.selector" -}}
app.kubernetes.io/name: {{ include "troupe.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
troupe/pool: {{ . }}
{{- end }}
{{- end }}

{{- define "troupe.labels" -}}
{{ include "troupe.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* (dict "root" $ "image" {repository, tag, digest} "at" "images.gateway") */}}
{{- define "troupe.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else if and .image.tag .root.Values.images.allowTags -}}
{{- printf "%s:%s" .image.repository .image.tag -}}
{{- else -}}
{{- fail (printf "%s.digest: give the image's digest, sha256:… (or a tag, and images.allowTags: true)" .at) -}}
{{- end -}}
{{- end }}

{{/* (dict "root" $ "who" "gateway") */}}
{{- define "troupe.serviceAccount" -}}
{{- $one := get .root.Values.serviceAccounts .who -}}
{{- $one.name | default (ternary (printf "%s-%s" (include "troupe.fullname" .root) .who) "default" $one.create) -}}
{{- end }}

{{/* `over` laid over `base`, key by key. Sprig's merge would not let 0 or false override. */}}
{{- define "troupe.laidOver" -}}
{{- $found := deepCopy .base -}}
{{- range $key, $value := .over -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $found $key)) -}}
{{- $_ := set $found $key (include "troupe.laidOver" (dict "base" (get $found $key) "over" $value) | fromYaml) -}}
{{- else -}}
{{- $_ := set $found $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end }}
