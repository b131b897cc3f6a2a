"""Assembles the server of one worker from its state folder.

The clouds that run a container with a model, and their environment variables, which are read once at start.

| cloud | recognised by | port | routes |
|---|---|---|---|
| Vertex AI | `AIP_HTTP_PORT`, `AIP_HEALTH_ROUTE`, `AIP_PREDICT_ROUTE`, `AIP_STORAGE_URI` | as given (8080) | as given |
| SageMaker | a model in /opt/ml/model, `SAGEMAKER_BIND_TO_PORT` | as given (8080) | `/ping`, `/invocations` |
| Azure ML | `AZUREML_MODEL_DIR` | 5001 | `/score`; liveness and readiness as the deployment has them |

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements,
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html,
https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container
"""

import atexit
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.runtime import BatchPolicy, Placement, available_cores
from mlflow_deploy_plugin.server.capture.writer import CaptureWriter
from mlflow_deploy_plugin.server.device import claim_device_id
from mlflow_deploy_plugin.server.inference.auth import Authenticator
from mlflow_deploy_plugin.server.inference.dataplane import DataPlane
from mlflow_deploy_plugin.server.inference.limits import RequestLimits, max_batch_rows, open_rate_limiter
from mlflow_deploy_plugin.server.inference.response_cache import open_cache
from mlflow_deploy_plugin.server.inference.shadow import Shadows
from mlflow_deploy_plugin.server.models.explainer import ExplainerClient
from mlflow_deploy_plugin.server.models.loading import MemoryLimit, WarmVersion, load_warm, worker_limit
from mlflow_deploy_plugin.server.models.model_control import ModelControl
from mlflow_deploy_plugin.server.models.repository import Repository
from mlflow_deploy_plugin.server.observability.metrics import Metrics
from mlflow_deploy_plugin.server.observability.tracing import Tracer, open_tracer
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.spec import ServerSpec, load_specs
from mlflow_deploy_plugin.statedir import SPEC, SPOOL

_ROUTE = re.compile(r"/[!-~]{0,512}")
_AZURE_PORT = 5001
_SAGEMAKER_MODEL = Path("/opt/ml/model")
_MLMODEL = "MLmodel"


@dataclass(frozen=True)
class Cloud:
    """The settings from the cloud; empty outside of one.

    Attributes:
        port: the port that the cloud sends requests to, if it names one.
        model_uri: the model to serve if the command line names none; empty if the cloud names none either.
        health_route / predict_route: Vertex AI's; empty elsewhere. They win over a route of ours at the same path.
    """

    port: int | None = None
    model_uri: str = ""
    health_route: str = ""
    predict_route: str = ""

    @cached_property
    def paths(self) -> frozenset[str]:
        """The routes that the cloud names."""
        return frozenset({self.health_route, self.predict_route} - {""})


def read_cloud(environment: Mapping[str, str] = os.environ, sagemaker_model: Path = _SAGEMAKER_MODEL) -> Cloud:
    """Read the environment, and look for the folder that SageMaker unpacks its model into.

    Raises:
        InvalidConfig: a port or a route is malformed; the message names the variable.
    """
    if "AIP_HTTP_PORT" in environment or "AIP_PREDICT_ROUTE" in environment:
        return Cloud(
            _port(environment, "AIP_HTTP_PORT", 8080),
            environment.get("AIP_STORAGE_URI", ""),
            _route(environment, "AIP_HEALTH_ROUTE"),
            _route(environment, "AIP_PREDICT_ROUTE"),
        )
    if "AZUREML_MODEL_DIR" in environment:
        folder = Path(environment["AZUREML_MODEL_DIR"])
        inner = list(folder.glob(f"*/{_MLMODEL}"))  # Azure puts the registered folder into the folder that it names
        is_nested = len(inner) == 1 and not (folder / _MLMODEL).exists()
        return Cloud(_AZURE_PORT, str(inner[0].parent if is_nested else folder))
    if "SAGEMAKER_BIND_TO_PORT" in environment or (sagemaker_model / _MLMODEL).exists():
        return Cloud(_port(environment, "SAGEMAKER_BIND_TO_PORT", 8080), str(sagemaker_model))
    return Cloud()


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535):
        raise InvalidConfig(f"{name} is {text[:40]!r}; a port from 1 to 65535 is expected")
    return int(text)


def _route(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    if text and not _ROUTE.fullmatch(text):
        raise InvalidConfig(f"{name} is {text[:100]!r}; a path that begins with / is expected")
    return text


_GRAPH_CACHE, _ENGINE_CACHE = "graphs", "engines"


@dataclass(frozen=True)
class Server:
    """The parts that answer requests in this process; every transport gets this object."""

    dataplane: DataPlane
    repository: Repository
    metrics: Metrics
    capture: CaptureWriter
    shadows: Shadows
    max_body_bytes: int
    model_control: ModelControl
    spec: ServerSpec
    explainer: ExplainerClient
    auth: Authenticator
    tracer: Tracer | None = None
    logs_requests: bool = False
    limits: RequestLimits = field(default_factory=RequestLimits)
    cloud: Cloud = field(default_factory=Cloud)

    def close(self) -> None:
        """Stop following, release the spool's segment and remove the worker's state file."""
        self.repository.stop()
        self.shadows.close()
        self.capture.close()
        self.explainer.close()
        if self.tracer:
            self.tracer.close()


def open_server(state_dir: Path) -> Server:
    """Open the server of the state folder; it begins to load at once, in a thread of its own.

    Raises:
        InvalidConfig: spec.yaml is malformed.
    """
    spec = read_server_spec(state_dir)
    threads = spec.intra_op_num_threads or max(1, available_cores() // spec.workers)
    metrics = Metrics()
    open_capture = partial(CaptureWriter, state_dir / SPOOL, max_bytes=spec.max_spool_bytes)
    capture = open_capture(metrics.count_capture)
    shadows = Shadows(open_capture(metrics.count_shadow_capture), metrics)
    rows = max_batch_rows(spec)
    policy = None  # running each request alone is best for tiny models on a CPU
    if rows > 1:
        policy = BatchPolicy(
            rows,
            spec.preferred_batch_size,
            spec.max_queue_delay_microseconds,
            spec.max_queue_size,
            pads=spec.device != "cpu",
        )
    device_id = claim_device_id(state_dir, spec.device_ids) if spec.device_ids else 0
    engines = state_dir / _ENGINE_CACHE
    placement = Placement(spec.device, device_id, spec.provider_options, engines, spec.io_binding)
    memory = MemoryLimit(worker_limit(spec.max_worker_memory_bytes, spec.workers))

    def load(folder: Path) -> WarmVersion:
        with memory.loading(folder):
            return load_warm(
                folder,
                placement,
                threads,
                policy,
                check_determinism=spec.response_cache_bytes > 0,
                timeout_seconds=float(spec.request_timeout_seconds),
                graph_cache=state_dir / _GRAPH_CACHE,
            )

    repository = Repository(state_dir, load)
    repository.add_listener(metrics.set_served_versions)
    settings = load_settings()
    cache = open_cache(spec.response_cache_bytes, spec.response_cache_seconds, settings.redis_url)
    server = Server(
        DataPlane(
            repository, capture, metrics.count_batch, cache, spec.default_timeout_microseconds, mirror=shadows.mirror
        ),
        repository,
        metrics,
        capture,
        shadows,
        spec.max_body_bytes,
        ModelControl(state_dir, spec.model_control_mode, max(1, spec.threads // 2)),
        spec,
        ExplainerClient(float(spec.request_timeout_seconds), max(1, spec.threads // 2)),
        Authenticator(state_dir, spec.authenticates, spec.jwt_issuer, spec.jwt_audience),
        open_tracer(),
        settings.log_requests,
        RequestLimits(
            spec.max_concurrent_requests,
            open_rate_limiter(spec.rate_limit, settings.redis_url) if spec.rate_limit else None,
            spec.rate_limit or "",
            spec.rate_limit_header,
            partial(metrics.count_refused, ""),
        ),
        read_cloud(),
    )
    repository.start()
    atexit.register(server.close)
    return server


def read_server_spec(state_dir: Path) -> ServerSpec:
    """Return the `server:` part of spec.yaml (of its first endpoint if it has several), or the defaults.

    Raises:
        InvalidConfig: spec.yaml is malformed.
    """
    try:
        text = (state_dir / SPEC).read_text()
    except FileNotFoundError:
        return ServerSpec()
    return load_specs(text)[0].server
