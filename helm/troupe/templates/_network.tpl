{{- define "troupe.toDns" -}}
- to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: {{ .Values.networkPolicy.dns.namespace }}}
    {{- with .Values.networkPolicy.dns.nodeLocal }}
    - ipBlock: {cidr: {{ . }}/32}
    {{- end }}
  ports: [{protocol: UDP, port: {{ .Values.networkPolicy.dns.port }}}, {protocol: TCP, port: {{ .Values.networkPolicy.dns.port }}}]
{{- end }}

{{/* The clouds' metadata servers hand out credentials on 169.254.0.0/16. A block may only except what
     lies in it. */}}
{{- define "troupe.cidrs" -}}
{{- range . }}
- ipBlock:
    cidr: {{ . }}
    {{- if eq . "0.0.0.0/0" }}
    except: [169.254.0.0/16]
    {{- end }}
{{- end }}
{{- end }}
