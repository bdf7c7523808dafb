{{/* What no schema can say, because it is about two values at once. */}}
{{- define "troupe.check" -}}
{{- $storage := .Values.storage.url -}}
{{- if not (or (hasPrefix "s3://" $storage) (hasPrefix "/data/" $storage)) -}}
{{- fail (printf "storage.url: %q must be s3://bucket/prefix, or a folder below /data, where storage.claim is mounted" $storage) -}}
{{- end -}}
{{- $model := .Values.model -}}
{{- if eq (empty $model.folder) (empty $model.registry) -}}
{{- fail "model: give either model.folder or model.registry" -}}
{{- end -}}
{{- if and $model.claim (not (hasPrefix "/models" $model.folder)) -}}
{{- fail "model.claim: it is mounted on /models, so model.folder must begin with that" -}}
{{- end -}}
{{- if and $model.publicKey.configMap (not $model.registry) -}}
{{- fail "model.publicKey: only models of model.registry are signed" -}}
{{- end -}}
{{- if and .Values.redis.embedded.enabled .Values.redis.host -}}
{{- fail "redis.host: redis.embedded.enabled is true, which of the two is it?" -}}
{{- end -}}
{{- if and .Values.redis.embedded.enabled (or .Values.redis.tls .Values.redis.username .Values.redis.urlSecret.name) -}}
{{- fail "redis.embedded: it has no tls, no username and no urlSecret; give redis.passwordSecret" -}}
{{- end -}}
{{- if and .Values.redis.username (not .Values.redis.passwordSecret.name) -}}
{{- fail "redis.username: give redis.passwordSecret too" -}}
{{- end -}}
{{- $store := urlParse .Values.storage.endpointUrl -}}
{{- $port := regexFind ":[0-9]+$" $store.host | trimPrefix ":" | default (ternary "80" "443" (eq $store.scheme "http")) -}}
{{- $policies := .Values.networkPolicy -}}
{{- if and $policies.enabled .Values.storage.endpointUrl (ne $port (toString $policies.s3Port)) -}}
{{- fail (printf "networkPolicy.s3Port: %v is open, and storage.endpointUrl leads to %s" $policies.s3Port $port) -}}
{{- end -}}
{{- if and .Values.gateway.ingress.enabled (not .Values.gateway.ingress.host) -}}
{{- fail "gateway.ingress.host: an ingress needs one" -}}
{{- end -}}
{{- if gt (int .Values.gateway.autoscaling.minReplicas) (int .Values.gateway.autoscaling.maxReplicas) -}}
{{- fail "gateway.autoscaling: minReplicas is larger than maxReplicas" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (eq (get .Values.settings "auth") "keys") (not .Values.metrics.keySecret.name) -}}
{{- fail "metrics.keySecret.name: with settings.auth: keys, /metrics asks for a key with the scope admin" -}}
{{- end -}}
{{- $names := list -}}
{{- range concat .Values.workers .Values.encoders -}}
{{- if has .name $names -}}
{{- fail (printf "workers, encoders: two pools have the name %q" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end }}

{{/* (dict "root" $ "pool" pool "at" "workers.gpu"): of one pool. */}}
{{- define "troupe.checkPool" -}}
{{- $auto := .pool.autoscaling -}}
{{- if and $auto.enabled (gt (int $auto.minReplicas) (int $auto.maxReplicas)) -}}
{{- fail (printf "%s.autoscaling: minReplicas is larger than maxReplicas" .at) -}}
{{- end -}}
{{- $redis := .root.Values.redis -}}
{{- if and $auto.enabled $redis.urlSecret.name (not $redis.passwordSecret.name) -}}
{{- fail (printf "%s.autoscaling: KEDA takes no whole address as redis.urlSecret has it; name its password in redis.passwordSecret too" .at) -}}
{{- end -}}
{{- if contains "encoders=" .pool.runtime -}}
{{- fail (printf "%s.runtime: leave encoders= out; the chart sets it by the list that a pool is in" .at) -}}
{{- end -}}
{{- $least := include "troupe.leastGrace" . | int -}}
{{- $given := int .pool.terminationGracePeriodSeconds -}}
{{- if and $given (lt $given $least) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds: %d is too short, a worker may need %d: settings.lease_s, stepSeconds, and 8" .at $given $least) -}}
{{- end -}}
{{- end }}

{{/* The worker ends a job that takes 3 s more (workers.boot.DRAIN_S), or hands it back at its next
     step; a soft shutdown waits for a lease (workers.app); Celery's own end takes up to 5 s. */}}
{{- define "troupe.leastGrace" -}}
{{- add (ceil (float64 (get .root.Values.settings "lease_s" | default 15)) | int) (int .pool.stepSeconds) 8 -}}
{{- end }}
