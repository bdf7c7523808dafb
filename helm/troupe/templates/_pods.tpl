{{/* What pods have in common: security, environment, volumes. */}}
{{- define "troupe.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser }}
runAsGroup: {{ .Values.podSecurity.runAsUser }}
fsGroup: {{ .Values.podSecurity.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "troupe.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* (dict "root" $ "where" pool or component): where pods go. */}}
{{- define "troupe.scheduling" -}}
{{- with .where.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .where.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .where.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .where.spread }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "troupe.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "troupe.redisHost" -}}
{{- if .Values.redis.embedded.enabled -}}
{{- printf "%s-redis" (include "troupe.fullname" .) -}}
{{- else -}}
{{- required "redis.host: where is Redis? (Or redis.embedded.enabled: true)" .Values.redis.host -}}
{{- end -}}
{{- end }}

{{/* A folder of the pod's own below the working directory, or the claim that all share. */}}
{{- define "troupe.stateDir" -}}
{{- ternary "/app/.troupe" "/data" (hasPrefix "s3://" .Values.storage.url) -}}
{{- end }}

{{- define "troupe.modelAddress" -}}
{{- $model := .Values.model -}}
{{- if $model.registry -}}
{{- printf "%s%s#%s" $model.registry (ternary "?key=/etc/troupe/publisher/publisher.pem" "" (ne $model.publicKey.configMap "")) $model.ref -}}
{{- else -}}
{{- $model.folder -}}
{{- end -}}
{{- end }}

{{/* Settings that are no secret, one ConfigMap for all. */}}
{{- define "troupe.settings" -}}
{{- range $name, $value := .Values.settings }}
{{- /* A million as a float would be told as 1e+06, which is no whole number to its reader. */}}
{{- $whole := and (not (kindIs "string" $value)) (eq (float64 $value) (float64 (int64 $value))) }}
TROUPE_{{ upper $name }}: {{ ternary (int64 $value) $value $whole | toString | quote }}
{{- end }}
TROUPE_BLOBS_URL: {{ .Values.storage.url | quote }}
{{- end }}

{{- define "troupe.environment" -}}
envFrom:
  - configMapRef: {name: {{ include "troupe.fullname" . }}-settings}
{{- with .Values.storage.credentialsSecret }}
  - secretRef: {name: {{ . }}}
{{- end }}
env:
{{- $redis := .Values.redis }}
{{- if $redis.urlSecret.name }}
  - name: TROUPE_REDIS_URL
    valueFrom:
      secretKeyRef: {name: {{ $redis.urlSecret.name }}, key: {{ $redis.urlSecret.key }}}
{{- else }}
{{- if $redis.passwordSecret.name }}
  - name: REDIS_PASSWORD
    valueFrom:
      secretKeyRef: {name: {{ $redis.passwordSecret.name }}, key: {{ $redis.passwordSecret.key }}}
{{- end }}
  - name: TROUPE_REDIS_URL
    value: {{ printf "%s://%s%s:%d/%d" (ternary "rediss" "redis" $redis.tls) (ternary (printf "%s:$(REDIS_PASSWORD)@" $redis.username) "" (ne $redis.passwordSecret.name "")) (include "troupe.redisHost" .) (int $redis.port) (int $redis.database) | quote }}
{{- end }}
{{- with .Values.storage.endpointUrl }}
  - {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.storage.region }}
  - {name: AWS_REGION, value: {{ . | quote }}}
  - {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- with .Values.tracing.endpoint }}
  - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
  - {name: HOME, value: /tmp}
  - {name: PYTHONUNBUFFERED, value: "1"}
{{- end }}

{{/* Mounts and volumes of every process: /tmp, and the shared claim where storage is a folder. */}}
{{- define "troupe.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if not (hasPrefix "s3://" .Values.storage.url) }}
- {name: data, mountPath: /data}
{{- end }}
{{- end }}

{{- define "troupe.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .tmpSize }}}
{{- if not (hasPrefix "s3://" .root.Values.storage.url) }}
- name: data
  persistentVolumeClaim: {claimName: {{ .root.Values.storage.claim.existingClaim | default (printf "%s-data" (include "troupe.fullname" .root)) }}}
{{- end }}
{{- end }}

{{- define "troupe.checksum" -}}
checksum/settings: {{ include "troupe.settings" . | sha256sum }}
{{- end }}
