"""Puts one worker's server together from its state folder."""

import atexit
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mlflow_deploy_plugin.runtime import BatchPolicy, available_cores
from mlflow_deploy_plugin.server.capture.writer import CaptureWriter
from mlflow_deploy_plugin.server.clouds import Cloud, read_cloud
from mlflow_deploy_plugin.server.inference.dataplane import DataPlane
from mlflow_deploy_plugin.server.inference.limits import RequestLimits, max_batch_rows, open_rate_limiter
from mlflow_deploy_plugin.server.inference.response_cache import open_cache
from mlflow_deploy_plugin.server.inference.shadow import Shadows
from mlflow_deploy_plugin.server.models.explainer import ExplainerClient
from mlflow_deploy_plugin.server.models.loading import WarmVersion, load_warm
from mlflow_deploy_plugin.server.models.memory import MemoryLimit, worker_limit
from mlflow_deploy_plugin.server.models.model_control import ModelControl
from mlflow_deploy_plugin.server.models.repository import Repository
from mlflow_deploy_plugin.server.observability.metrics import Metrics
from mlflow_deploy_plugin.server.observability.shadow_metrics import ShadowMetrics
from mlflow_deploy_plugin.server.observability.tracing import Tracer, open_tracer
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.spec import ServerSpec, load_specs
from mlflow_deploy_plugin.statedir import SPEC, SPOOL

_KEPT_GRAPHS = "graphs"


@dataclass(frozen=True)
class Server:
    """What answers requests in this process; every transport is handed this."""

    dataplane: DataPlane
    repository: Repository
    metrics: Metrics
    capture: CaptureWriter
    shadows: Shadows
    max_body_bytes: int
    model_control: ModelControl
    spec: ServerSpec
    explainer: ExplainerClient
    tracer: Tracer | None = None
    logs_requests: bool = False
    limits: RequestLimits = field(default_factory=RequestLimits)
    cloud: Cloud = field(default_factory=Cloud)

    def close(self) -> None:
        """Stops following, and lets go of the spool's segment and of the worker's state file."""
        self.repository.stop()
        self.shadows.close()
        self.capture.close()
        self.explainer.close()
        if self.tracer:
            self.tracer.close()


def open_server(state_dir: Path) -> Server:
    """The server of the state folder; it begins to load at once, in a thread of its own.

    Raises:
        InvalidConfig: spec.yaml is there and is not a spec.
    """
    spec = read_server_spec(state_dir)
    threads = spec.intra_op_num_threads or max(1, available_cores() // spec.workers)
    metrics = Metrics()
    open_capture = partial(CaptureWriter, state_dir / SPOOL, max_bytes=spec.max_spool_bytes)
    capture = open_capture(metrics.count_capture)
    shadows = Shadows(open_capture(metrics.count_shadow_capture), ShadowMetrics(metrics.folder))
    load = partial(
        load_warm,
        device=spec.device,
        intra_op_num_threads=threads,
        policy=_batch_policy(spec),
        graph_cache=state_dir / _KEPT_GRAPHS,
        check_determinism=spec.response_cache_bytes > 0,
        timeout_seconds=float(spec.request_timeout_seconds),
    )
    memory = MemoryLimit(worker_limit(spec.max_worker_memory_bytes, spec.workers))

    def load_within(folder: Path) -> WarmVersion:
        with memory.loading(folder):
            return load(folder)

    repository = Repository(state_dir, load_within, metrics.set_served_versions)
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
        open_tracer(),
        settings.log_requests,
        _limits(spec, settings.redis_url, partial(metrics.count_refused, "")),
        read_cloud(),
    )
    repository.start()
    atexit.register(server.close)
    return server


def _batch_policy(spec: ServerSpec) -> BatchPolicy | None:
    """How requests are joined; None: not at all, which is best for tiny models on a CPU."""
    rows = max_batch_rows(spec)
    if rows == 1:
        return None
    return BatchPolicy(rows, spec.preferred_batch_size, spec.max_queue_delay_microseconds, spec.max_queue_size)


def _limits(spec: ServerSpec, redis_url: str, refused: Callable[[str], None]) -> RequestLimits:
    rate = open_rate_limiter(spec.rate_limit, redis_url) if spec.rate_limit else None
    return RequestLimits(spec.max_concurrent_requests, rate, spec.rate_limit or "", spec.rate_limit_header, refused)


def read_server_spec(state_dir: Path) -> ServerSpec:
    """The `server:` part of spec.yaml (of its first endpoint, where there are several), or the defaults.

    Raises:
        InvalidConfig: spec.yaml is there and is not a spec.
    """
    try:
        text = (state_dir / SPEC).read_text()
    except FileNotFoundError:
        return ServerSpec()
    return load_specs(text)[0].server
