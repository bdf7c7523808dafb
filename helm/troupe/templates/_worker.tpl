{{/* A pool of workers, and what gives it its size. (dict "root" "pool" "role" "me" "name") */}}
{{- define "troupe.workerEnvironment" -}}
{{- include "troupe.environment" .root }}
  - {name: OMP_WAIT_POLICY, value: PASSIVE}
  - {name: HF_HUB_OFFLINE, value: "1"}
  - {name: XDG_CACHE_HOME, value: /tmp/cache}
  - {name: TROUPE_MODEL_DIR, value: {{ include "troupe.modelAddress" .root | quote }}}
{{- $words := list }}
{{- with .pool.runtime }}{{ $words = append $words . }}{{ end }}
{{- if eq .role "encoder" }}
{{- $words = append $words "encoders=only" }}
{{- else if .root.Values.encoders }}
{{- $words = append $words "encoders=remote" }}
{{- end }}
  - {name: TROUPE_RUNTIME, value: {{ join "," $words | quote }}}
{{- if .pool.keepEncodings }}
  - {name: TROUPE_ENCODINGS_DIR, value: /tmp/encodings}
{{- end }}
{{- if .root.Values.signing.existingSecret }}
  - {name: TROUPE_SIGNING_DIR, value: /etc/troupe/signing}
{{- end }}
{{- end }}

{{- define "troupe.workerMounts" -}}
{{- include "troupe.mounts" .root }}
{{- if hasPrefix "s3://" .root.Values.storage.url }}
- {name: state, mountPath: /app/.troupe}
{{- end }}
{{- if .root.Values.model.registry }}
- {name: models, mountPath: {{ include "troupe.stateDir" .root }}/models}
{{- end }}
{{- if .root.Values.model.publicKey.configMap }}
- {name: publisher, mountPath: /etc/troupe/publisher, readOnly: true}
{{- end }}
{{- if .root.Values.model.claim }}
- {name: weights, mountPath: /models, readOnly: true}
{{- end }}
{{- if .root.Values.signing.existingSecret }}
- {name: signing, mountPath: /etc/troupe/signing, readOnly: true}
{{- end }}
{{- end }}

{{- define "troupe.workerVolumes" -}}
{{- include "troupe.volumes" (dict "root" .root "tmpSize" .pool.tmpSize) }}
{{- $model := .root.Values.model }}
{{- if hasPrefix "s3://" .root.Values.storage.url }}
- name: state
  emptyDir: {sizeLimit: 1Gi}
{{- end }}
{{- if $model.registry }}
- name: models
  {{- if $model.cache.claim }}
  persistentVolumeClaim: {claimName: {{ $model.cache.claim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $model.cache.size }}}
  {{- end }}
{{- end }}
{{- if $model.publicKey.configMap }}
- name: publisher
  configMap:
    name: {{ $model.publicKey.configMap }}
    items: [{key: {{ $model.publicKey.key }}, path: publisher.pem}]
{{- end }}
{{- with $model.claim }}
- name: weights
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- with .root.Values.signing.existingSecret }}
- name: signing
  secret: {secretName: {{ . }}, defaultMode: 288}
{{- end }}
{{- end }}

{{- define "troupe.workerDeployment" -}}
{{- $pool := .pool -}}
{{- $image := include "troupe.laidOver" (dict "base" .root.Values.images.worker "over" (dict)) | fromYaml -}}
{{- if $pool.image.repository }}{{ $image = $pool.image }}{{ else if or $pool.image.digest $pool.image.tag }}
{{- $image = dict "repository" .root.Values.images.worker.repository "digest" $pool.image.digest "tag" $pool.image.tag }}{{ end -}}
{{- $image = include "troupe.image" (dict "root" .root "image" $image "at" "images.worker") -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  labels:
    {{- include "troupe.labels" .me | nindent 4 }}
spec:
  {{- if not $pool.autoscaling.enabled }}
  replicas: {{ $pool.replicas }}
  {{- end }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 0, maxUnavailable: {{ $pool.maxUnavailable }}}
  progressDeadlineSeconds: {{ add $pool.startupSeconds 600 }}
  selector:
    matchLabels:
      {{- include "troupe.selector" .me | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "troupe.labels" .me | nindent 8 }}
      annotations:
        {{- include "troupe.checksum" .root | nindent 8 }}
        cluster-autoscaler.kubernetes.io/safe-to-evict: {{ $pool.safeToEvict | quote }}
        {{- if not $pool.safeToEvict }}
        karpenter.sh/do-not-disrupt: "true"
        {{- end }}
        {{- with $pool.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "troupe.serviceAccount" (dict "root" .root "who" "worker") }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $pool.terminationGracePeriodSeconds | int | default (include "troupe.leastGrace" . | int) }}
      securityContext:
        {{- include "troupe.podSecurity" .root | nindent 8 }}
      {{- with $pool.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- include "troupe.scheduling" (dict "root" .root "where" $pool "component" .role "pool" $pool.name) | nindent 6 }}
      {{- $onCard := gt (int $pool.gpu.count) 0 }}
      {{- if or $pool.tolerations (and $onCard $pool.gpu.tolerate) }}
      tolerations:
        {{- if and $onCard $pool.gpu.tolerate }}
        - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
        {{- end }}
        {{- with $pool.tolerations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- if .root.Values.model.registry }}
      initContainers:
        # Fetches the model, or checks every byte of what is there.
        - name: model
          image: {{ $image }}
          imagePullPolicy: {{ .root.Values.images.pullPolicy }}
          workingDir: /app
          args: [python, -m, troupe, models, pull, {{ .root.Values.model.ref | quote }}]
          {{- include "troupe.workerEnvironment" . | nindent 10 }}
          securityContext:
            {{- include "troupe.containerSecurity" .root | nindent 12 }}
          resources:
            {{- toYaml $pool.resources | nindent 12 }}
          volumeMounts:
            {{- include "troupe.workerMounts" . | nindent 12 }}
      {{- end }}
      containers:
        - name: {{ .role }}
          image: {{ $image }}
          imagePullPolicy: {{ .root.Values.images.pullPolicy }}
          workingDir: /app
          args: [python, -m, celery, -A, workers.app, worker, -P, prefork, -c, "1", --loglevel, INFO, -n, "{{ .role }}@%h"]
          {{- include "troupe.workerEnvironment" . | nindent 10 }}
          securityContext:
            {{- include "troupe.containerSecurity" .root | nindent 12 }}
          resources:
            {{- $resources := deepCopy $pool.resources }}
            {{- if $onCard }}
            {{- $_ := set $resources "limits" (merge (dict $pool.gpu.resource $pool.gpu.count) ($resources.limits | default dict)) }}
            {{- end }}
            {{- toYaml $resources | nindent 12 }}
          # It lives from before it loads; it is ready when it has loaded and its store can be written.
          startupProbe:
            exec: {command: [python, -m, workers.alive]}
            periodSeconds: 10
            timeoutSeconds: 10
            failureThreshold: {{ div $pool.startupSeconds 10 }}
          livenessProbe:
            exec: {command: [python, -m, workers.alive]}
            periodSeconds: 20
            timeoutSeconds: 10
            failureThreshold: 3
          readinessProbe:
            exec: {command: [python, -m, workers.alive, --ready]}
            periodSeconds: 10
            timeoutSeconds: 10
          volumeMounts:
            {{- include "troupe.workerMounts" . | nindent 12 }}
      volumes:
        {{- include "troupe.workerVolumes" . | nindent 8 }}
{{- end }}

{{/* By the ledger's own sets: KEDA's Redis scaler asks a sorted set for its size. A job in hand has
     left `queued`, so that alone would end a worker under its job. */}}
{{- define "troupe.scaledObject" -}}
{{- $auto := .pool.autoscaling -}}
{{- $prefix := printf "%s:" (get .root.Values.settings "key_prefix" | default "troupe") -}}
{{- $lists := $auto.lists | default (list "queued") -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  labels:
    {{- include "troupe.labels" .me | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .name }}}
  minReplicaCount: {{ $auto.minReplicas }}
  maxReplicaCount: {{ $auto.maxReplicas }}
  pollingInterval: {{ $auto.pollingSeconds }}
  cooldownPeriod: {{ $auto.cooldownSeconds }}
  {{- if $auto.fallbackReplicas }}
  fallback: {failureThreshold: 3, replicas: {{ $auto.fallbackReplicas }}}
  {{- end }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown:
          stabilizationWindowSeconds: {{ $auto.stabilizationSeconds }}
          policies: [{type: Percent, value: 10, periodSeconds: 60}]
    scalingModifiers:
      {{- $terms := list "running" }}
      {{- range $i, $_ := $lists }}{{ $terms = append $terms (printf "waiting%d" $i) }}{{ end }}
      formula: {{ printf "(%s) * %v" (join " + " $terms) $auto.share | quote }}
      target: {{ $auto.jobsPerReplica | quote }}
      activationTarget: "0"
      metricType: AverageValue
  triggers:
    {{- $redis := .root.Values.redis }}
    {{- range $i, $list := prepend $lists "running" }}
    - type: redis
      name: {{ if $i }}waiting{{ sub $i 1 }}{{ else }}running{{ end }}
      metadata:
        address: {{ printf "%s%s:%d" (include "troupe.redisHost" $.root) (ternary (printf ".%s.svc" $.root.Release.Namespace) "" $redis.embedded.enabled) (int $redis.port) | quote }}
        databaseIndex: {{ $redis.database | quote }}
        listName: {{ printf "%s%s" $prefix $list | quote }}
        listLength: "1"
        enableTLS: {{ $redis.tls | quote }}
        {{- with $redis.username }}
        username: {{ . | quote }}
        {{- end }}
      {{- if $redis.passwordSecret.name }}
      authenticationRef: {name: {{ include "troupe.fullname" $.root }}-redis}
      {{- end }}
    {{- end }}
{{- end }}
