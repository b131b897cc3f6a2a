{{/* Metadata of an object. Called with (root, name). */}}
{{- define "onnxserve.metadata" -}}
name: {{ index . 1 | quote }}
namespace: {{ (index . 0).Release.Namespace | quote }}
labels:
  {{- include "onnxserve.labels" (index . 1) | nindent 2 }}
{{- end -}}

{{- define "onnxserve.labels" -}}
app.kubernetes.io/name: onnxserve
app.kubernetes.io/instance: {{ quote . }}
app.kubernetes.io/managed-by: onnxserve
{{- end -}}

{{/* The security context of every pod. It names no ids: the image has its user, and OpenShift gives each namespace its own. */}}
{{- define "onnxserve.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "onnxserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Spread pods over nodes and zones. Called with the name of the object that they belong to. */}}
{{- define "onnxserve.spread" -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector: {matchLabels: {app.kubernetes.io/instance: {{ $ | quote }}}}
{{- end }}
{{- end -}}

{{/* The only places that containers write. Called with the source of the home's volume. */}}
{{- define "onnxserve.writable" -}}
- {name: home, emptyDir: {{ toJson . }}}
- {name: tmp, emptyDir: {}}
{{- end -}}

{{/* Bytes of a size such as 4GiB. */}}
{{- define "onnxserve.bytes" -}}
{{- $units := dict "KiB" 1024 "MiB" 1048576 "GiB" 1073741824 "TiB" 1099511627776 }}
{{- mul (regexFind "^[0-9]+" . | int64) (get $units (regexFind "[A-Z].+" .) | int64) }}
{{- end -}}

{{- define "onnxserve.writableMounts" -}}
- {name: home, mountPath: /var/lib/onnxserve}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* Container fields of the image `controller`, for everything that works on the store. Called with the root. */}}
{{- define "onnxserve.worker" -}}
image: {{ .Values.controller.image | quote }}
{{- with .Values.environment }}
env:
  {{- range $variable, $value := . }}
  - {name: {{ quote $variable }}, value: {{ $value | quote | replace "$" "$$" }}}
  {{- end }}
{{- end }}
envFrom:
  - secretRef: {name: {{ .Values.secret | quote }}}
securityContext:
  {{- include "onnxserve.containerSecurity" . | nindent 2 }}
volumeMounts:
  {{- include "onnxserve.writableMounts" . | nindent 2 }}
{{- end -}}

{{/* The account of controllers that roll out. Called with the root. */}}
{{- define "onnxserve.controllerAccount" -}}
{{ .Values.controller.serviceAccount | default (printf "%s-controller" .Release.Name) }}
{{- end -}}

{{/* The account of a pod that asks no Kubernetes API. Called with the root. */}}
{{- define "onnxserve.plainAccount" -}}
{{- with .Values.controller.serviceAccount }}
serviceAccountName: {{ quote . }}
{{- end }}
automountServiceAccountToken: false
{{- end -}}

{{/* Pod fields of the same. Called with the root. */}}
{{- define "onnxserve.workerPod" -}}
enableServiceLinks: false
securityContext:
  {{- include "onnxserve.podSecurity" . | nindent 2 }}
{{- with .Values.controller.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ quote . }}
  {{- end }}
{{- end }}
volumes:
  {{- include "onnxserve.writable" dict | nindent 2 }}
{{- end -}}
