"""EndpointSpec: the one description of what is served and how.

An endpoint is a server; a deployment is a variant in it. One YAML document describes one endpoint:

    apiVersion: onnxserve/v1
    name: flights
    variants:
      flights: {model: "models:/flight-delay/Production", weight: 100}   # a stage or alias is followed
    server: {workers: 2, device: cpu, port: 8080}
    capture: {fraction: 1.0}
    monitors:
      daily: {kind: drift, every: 1d, min_rows: 200}

Field names, defaults, bounds and descriptions stand here once: `-C server.port=8123`, `onnxserve serve --help`,
`mlflow deployments help -t onnxserve` and the reference page of the docs are made from them.
"""

from mlflow_deploy_plugin.spec.document import (
    add_variant,
    apply_config,
    dump_spec,
    empty_endpoint,
    field_reference,
    load_specs,
    new_endpoint,
    remove_monitor,
    remove_variant,
    spec_document,
)
from mlflow_deploy_plugin.spec.monitors import (
    KINDS_WITH_REFERENCE,
    MIN_LABELLED_WINDOWS,
    REGRESSION,
    Condition,
    MonitorKind,
    MonitorSpec,
    Requirement,
    RetrainSpec,
    parse_condition,
)
from mlflow_deploy_plugin.spec.parts import (
    RATE,
    CaptureSpec,
    ContainerSpec,
    Device,
    EndpointSpec,
    KubernetesSpec,
    ModelControlMode,
    ProviderOptions,
    ServerSpec,
    StickySpec,
    VariantSpec,
    WorkerClass,
)
from mlflow_deploy_plugin.spec.types import (
    MONTHS,
    SMALLEST_ROLLING_RATE,
    WEEKDAYS,
    Duration,
    Name,
    bin_period,
    duration_seconds,
    is_loopback,
    load_time_zone,
    parse_time,
    rolling_span,
    validate_crontab,
)

__all__ = [
    "KINDS_WITH_REFERENCE",
    "MIN_LABELLED_WINDOWS",
    "MONTHS",
    "RATE",
    "REGRESSION",
    "SMALLEST_ROLLING_RATE",
    "WEEKDAYS",
    "CaptureSpec",
    "Condition",
    "ContainerSpec",
    "Device",
    "Duration",
    "EndpointSpec",
    "KubernetesSpec",
    "ModelControlMode",
    "MonitorKind",
    "MonitorSpec",
    "Name",
    "ProviderOptions",
    "Requirement",
    "RetrainSpec",
    "ServerSpec",
    "StickySpec",
    "VariantSpec",
    "WorkerClass",
    "add_variant",
    "apply_config",
    "bin_period",
    "dump_spec",
    "duration_seconds",
    "empty_endpoint",
    "field_reference",
    "is_loopback",
    "load_specs",
    "load_time_zone",
    "new_endpoint",
    "parse_condition",
    "parse_time",
    "remove_monitor",
    "remove_variant",
    "rolling_span",
    "spec_document",
    "validate_crontab",
]
