"""The spec files and the gate policy that `write.py` stores. Together, they set every
field.
"""

from collections.abc import Iterable

from pydantic import BaseModel

SPEC = """\
apiVersion: onnxserve/v1
name: everything
variants:
  champion: {model: "models:/flight-delay@champion", weight: 90, allow_pyfunc: true, convert: never}
  challenger: {model: "models:/flight-delay/2", weight: 10}
  candidate: {model: "models:/flight-delay/3", weight: 0, shadow: true}
server:
  host: 0.0.0.0
  port: 8080
  api_keys: true
  jwt_issuer: https://login.example
  jwt_audience: flights
  insecure: true
  grpc_port: 8081
  metrics_port: 9090
  workers: 2
  threads: 8
  worker_class: gthread
  certfile: flights-tls/tls.crt
  keyfile: flights-tls/tls.key
  ca_certs: flights-tls/ca.crt
  device: cuda
  device_ids: [0, 1]
  provider_options:
    gpu_mem_limit: 2147483648
    arena_extend_strategy: kSameAsRequested
    cudnn_conv_algo_search: HEURISTIC
    use_tf32: false
    enable_cuda_graph: true
  intra_op_num_threads: 2
  max_worker_memory_bytes: 1073741824
  max_body_bytes: 1048576
  max_text_characters: 50000
  request_timeout_seconds: 30
  graceful_timeout_seconds: 20
  model_control_mode: explicit
  allowed_hosts: [flights.svc, models.example]
  max_batch_size: 64
  preferred_batch_size: [8, 32]
  max_queue_delay_microseconds: 1000
  max_queue_size: 256
  default_timeout_microseconds: 500000
  max_concurrent_requests: 16
  rate_limit: 100/minute
  rate_limit_header: x-customer
  response_cache_bytes: 4194304
  explain_max_rows: 10
  max_spool_bytes: 67108864
  response_cache_seconds: 60
  pyfunc_env: uv
  model_memory: 4GiB
  model_disk: 20GiB
  v2_names: mlserver
  jobs:
    max_jobs: 4
    key_share: 0.25
    workers: 2
    max_upload_bytes: 1048576
    max_rows: 1000000
    max_file_bytes: 67108864
    max_memory: 4GiB
    timeout: 30m
    uris: ["s3://lake/in/"]
    keep: 2d
    max_kept_bytes: 268435456
container:
  image: registry.example/onnxserve:gpu
  cpus: 1.5
  memory_bytes: 2147483648
  environment: {ONNXSERVE_LOG_LEVEL: debug}
  secrets: {AWS_SECRET_ACCESS_KEY: flights/secret}
  secret_files: {GOOGLE_APPLICATION_CREDENTIALS: flights/google.json}
  restart: on-failure
  pids: 256
  network: models
capture:
  fraction: 0.5
  max_rows_per_request: 500
  drop: [output.probabilities]
  mask: [carrier]
  keys: [booking]
  retention: 400d
  sinks:
    audit: {url: "https://events.example/rows", authorization: ONNXSERVE_SINK_AUDIT, batch: 10, \
kserve: true}
monitors:
  inputs:
    kind: drift
    every: 1d
    schedule: 15 6 * * *
    time_zone: Europe/Berlin
    grace: 10m
    reference: rolling:7d
    min_rows: 300
    false_alarm_rate: 0.02
    season: 7d
    columns: [distance, hour]
    alert_on: change
    segment_by: [carrier]
    consecutive: 2
    alert: [oncall]
  answers: {kind: drift, columns: [prediction], every: 1h, \
reference: "window:2026-10-01/2026-10-08", independent_rows: true}
  quality: {kind: drift, reference: "dataset:s3://flights/reference.parquet", \
require: [missing(distance)<=0.1]}
  labels:
    kind: performance
    require: [accuracy>=0.8, log_loss<=0.6]
    labels_within: 2d
    labels: reported
    estimate: decides
    retrain:
      project: https://git.example/flights
      entry_point: retrain
      mode: incremental
      sample: {recent: 30d, fraction: 0.5, stratify: hour, weight: 14d}
      parameters: {depth: 3, loss: log}
      env_manager: uv
      schedule: 0 3 * * 1
      cooldown: 2d
      max_runs: 4
      timeout: 2h
      then: rollout
      steps: 5,50,100
      step_every: 10m
      min_requests: 500
  shadow: {kind: shadow, require: [disagreement(candidate)<=0.05]}
  level: {kind: service_level, every: 1h, require: [p99<=0.2, error_rate<=1%]}
alarms: {false_per_year: 4, min_effect: 0.02}
sticky: {header: x-user-id}
kubernetes:
  replicas: 2
  max_replicas: 6
  target_cpu_percent: 60
  requests_per_second: 200
  prometheus_url: http://prometheus.example:9090
  gpus: 2
  host: flights.example
  ingress_class: nginx
  tls_secret: flights-tls
  allowed_namespaces: [web]
  service_monitor: true
  service_monitor_key: flights/metrics
  service_monitor_labels: [release=monitoring]
  service_account: flights
  image_pull_secrets: [registry]
  node_selector: [pool=gpu]
  tolerations: [dedicated=ml:NoSchedule]
  force_conflicts: true
guard: {then: refuse}
proxy: {replicas: 3, hot: 1, hot_requests_per_second: 50, image: "registry.example/nginx:1.28"}
serve:
  steps: |
    def before(request):
        return request
  file: steps.py
  signature: signed
require: gate=passed
---
apiVersion: onnxserve/v1
name: second
variants: {v: {model: "models:/other/Production"}}
sticky: {key: customer}
kubernetes: {host: second.example, gateway: public}
---
apiVersion: onnxserve/v1
name: observed
variants: {v: {model: "models:/other/Production"}}
observe:
  source: postgresql://reader@db/shop
  format: columns
  id: booking
  time: at
  prediction: answer
  version: version
  query: answers
  position: number
  password: ONNXSERVE_SOURCE_SHOP
  since: "2025-11-01"
  every: 10m
"""

PROVIDERS = """\
apiVersion: onnxserve/v1
name: providers
variants: {v: {model: "models:/other/tag:kind=fast"}}
server:
  providers:
    - OpenVINOExecutionProvider: {device_type: CPU}
    - CPUExecutionProvider: {}
"""
"""`providers` excludes `device`, which SPEC sets."""

POLICY = """\
gated_aliases: [champion, blue]
gated_stages: [Staging, Production]
parity: warned
evaluation:
  dataset: runs:/0123456789abcdef0123456789abcdef/holdout.parquet
  target: delayed
  metric: roc_auc
  margin: 0.02
  confidence: 0.9
  at_least: 0.7
  resamples: 500
  max_rows: 10000
  min_rows: 50
robustness:
  noise: 0.1
  missing: 0.2
  out_of_range: 3.0
  max_flips: 0.2
  max_loss: 0.1
  refusals: fail
  max_rows: 500
  disturbances: {noise: [0.1, 0.2], missing: [0.1]}
  max_drop: 0.2
  dataset: reference
  target: delayed
  metric: accuracy
budget:
  max_latency_ratio: 1.5
  max_memory_ratio: 1.5
  max_p99_ms: 20
  max_memory_mb: 500
  ignore_below_ms: 0.5
  ignore_below_mb: 16
  batch: 32
backtest: {endpoint: flights, window: 3d, max_disagreement: 0.1, max_refusals: 0.01, \
min_rows: 50, max_rows: 5000}
skip: [budget]
signer: |
  -----BEGIN PUBLIC KEY-----
  MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEQyQg+I7KDtPx9MDftm9qGC/vw8Y8
  BTRCiEkhsvJQHTYK1sIxFU5EfYMcUVixWohvO7s6ogPzkHJ6EUFVhmq2Gw==
  -----END PUBLIC KEY-----
judges: [ci-gate]
witnessed: 1
steps: [0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef]
seed: 3
fresh_hours: 12
approvals: {count: 2, groups: [risk, owners], not_author: false, evaluation: optional, \
valid_for: 48h}
unapproved: {share: 5, for: 1h}
"""


def reduced_to(document, part):
    """Return the entries of the document that `part` has, at all levels. A newer
    version may have more entries.
    """
    if isinstance(document, dict) and isinstance(part, dict):
        return {
            name: reduced_to(document[name], value)
            for name, value in part.items()
            if name in document
        }
    if isinstance(document, list) and isinstance(part, list) and len(document) == len(part):
        return [reduced_to(entry, value) for entry, value in zip(document, part, strict=True)]
    return document


def unset_fields(*models):
    """Return the fields that no part of these models sets, as `CLASS.FIELD`."""
    defined: set[str] = set()
    in_use: set[str] = set()
    for model in _parts(models):
        defined.update(f"{type(model).__name__}.{name}" for name in type(model).model_fields)
        in_use.update(f"{type(model).__name__}.{name}" for name in model.model_fields_set)
    return defined - in_use


def _parts(value):
    """Yield the models in a value, at all levels."""
    values: Iterable[object] = ()
    if isinstance(value, BaseModel):
        yield value
        values = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, dict):
        values = value.values()
    elif isinstance(value, tuple | list):
        values = value
    for inner in values:
        yield from _parts(inner)
