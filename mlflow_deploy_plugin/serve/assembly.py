"""Assemble a worker's server from the state folder."""

import atexit
import gc
import math
import os
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.registry.model_uri import model_pattern
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ServerSpec
from mlflow_deploy_plugin.core.spec.types import memory_bytes
from mlflow_deploy_plugin.core.statedir.commands import MAX_WAITING
from mlflow_deploy_plugin.core.statedir.files import METRICS, SPEC, SPOOL
from mlflow_deploy_plugin.serve.cloud import read_cloud
from mlflow_deploy_plugin.serve.device import claim_device_id
from mlflow_deploy_plugin.serve.inference.auth import Authenticator
from mlflow_deploy_plugin.serve.inference.dataplane import DataPlane
from mlflow_deploy_plugin.serve.inference.limits import (
    RedisRates,
    RequestLimits,
    max_batch_rows,
    open_rate_limiter,
    request_threads,
)
from mlflow_deploy_plugin.serve.inference.response_cache import open_cache
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.inference.shadow import Shadows
from mlflow_deploy_plugin.serve.models.explainer_process import ExplainerClient
from mlflow_deploy_plugin.serve.models.lazy_models import LazyModels
from mlflow_deploy_plugin.serve.models.loading import (
    STACK_BYTES,
    MemoryLimit,
    WarmVersion,
    load_warm,
    worker_memory_limit,
)
from mlflow_deploy_plugin.serve.models.model_control import ModelControl
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.observability.recent_requests import RecentRequests
from mlflow_deploy_plugin.serve.observability.tracing import Observer, open_tracer
from mlflow_deploy_plugin.serve.protocols.v2 import load_names
from mlflow_deploy_plugin.serve.runtime.batcher import BatchPolicy
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import Placement, available_cores, limit_memory
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter

_LEAST_VALUES = 2**24
"""The lowest limit for the number of values in a response, because even small requests
can have large responses.
"""
_KEPT_BYTES = 16 * 1024 * 1024


def open_worker(state_dir: str) -> Server:
    """Open the server of a gunicorn worker after the fork. Raises InvalidConfig if
    spec.yaml is invalid.

    The garbage collector ignores the imported modules, because a body of 10,000 rows
    otherwise causes full collections of 50 ms. glibc keeps freed memory, because 100
    rows of 30 numbers otherwise cause 50 page faults.
    """
    configure_logging(load_settings().log_format, "worker")
    gc.freeze()
    bytes(_KEPT_BYTES)  # Freeing this block raises glibc's mmap threshold.
    # Arrow's own allocator reserves 128 MiB, which the limit of memory would count.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    server = open_server(Path(state_dir), is_worker=True)
    atexit.register(server.close)
    return server


def open_server(state_dir: Path, is_worker: bool = False) -> Server:
    """Open the server, which loads its models in a thread. `is_worker` is True if the
    process only serves. Raises InvalidConfig if spec.yaml is invalid.
    """
    specs = read_specs(state_dir)
    spec = specs[0].server if specs else ServerSpec()
    settings = load_settings()
    metrics = Metrics(state_dir / METRICS)
    capture = CaptureWriter(state_dir / SPOOL, max_bytes=spec.max_spool_bytes)
    shadows = Shadows(CaptureWriter(state_dir / SPOOL, max_bytes=spec.max_spool_bytes), metrics)
    # All versions use as many threads as the worker has cores now, even if its quota
    # changes.
    threads = spec.intra_op_num_threads or available_cores(spec.workers)
    device_id = claim_device_id(state_dir, spec.device_ids) if spec.device_ids else 0
    options = spec.provider_options
    if spec.device == "cuda" and options.gpu_mem_limit is None:
        options = options.model_copy(update={"gpu_mem_limit": spec.max_worker_memory_bytes})
    placement = Placement(spec.device, device_id, options, spec.providers)
    worker_bytes = worker_memory_limit(spec.max_worker_memory_bytes, spec.workers)
    limit_memory(worker_bytes, spec.workers)
    stacks = None
    if is_worker and not spec.is_on_nvidia:
        threading.stack_size(STACK_BYTES)
        stacks = request_threads(spec)
    memory = MemoryLimit(worker_bytes, stacks)
    loader = _Loader(spec, threads, placement, memory)
    names = load_names(spec.v2_names)
    repository = Repository(state_dir, loader.load)
    repository.version_of = names.version
    if model_pattern(specs) is not None:
        share = math.inf
        if spec.model_memory is not None:
            share = memory_bytes(spec.model_memory) // spec.workers
        seconds = spec.default_timeout_microseconds / 1e6 or float(spec.request_timeout_seconds)
        fetches = max(4, MAX_WAITING // spec.workers)
        fetch = ModelControl(state_dir, "none", fetches).fetch
        repository.lazy = LazyModels(repository, fetch, share, seconds, fetches, metrics)
    repository.add_listener(metrics.set_served_versions)
    recent = RecentRequests(metrics.folder, metrics.number)
    repository.add_listener(recent.follow)
    controls = max(1, spec.threads // 2)
    redis = None  # With Redis, all servers count rates together.
    # Any API key may have its own limit.
    if settings.redis_url and (spec.rate_limit is not None or spec.takes_keys):
        redis = RedisRates(settings.redis_url, metrics.count_redis_failure)
    auth = Authenticator(state_dir, spec, metrics.count_key, metrics.count_refused)
    server = Server(
        dataplane=DataPlane(
            repository,
            capture,
            metrics,
            shadows,
            open_cache(
                spec.response_cache_bytes,
                spec.response_cache_seconds,
                settings.redis_url,
                metrics.count_redis_failure,
            ),
            spec.default_timeout_microseconds,
        ),
        repository=repository,
        metrics=metrics,
        capture=capture,
        shadows=shadows,
        max_body_bytes=spec.max_body_bytes,
        model_control=ModelControl(state_dir, spec.model_control_mode, controls),
        spec=spec,
        explainer=ExplainerClient(float(spec.request_timeout_seconds), controls),
        auth=auth,
        recent=recent,
        observer=Observer(
            open_tracer(),
            settings.log_fraction if settings.log_requests else None,
            auth.is_stranger,
        ),
        limits=RequestLimits(
            spec.max_concurrent_requests,
            spec.rate_limit or "",
            spec.rate_limit_header,
            metrics.count_refused,
            partial(open_rate_limiter, redis=redis),
            are_shared=redis is not None,
        ),
        cloud=read_cloud(),
        names=names,
    )
    repository.start()
    return server


@dataclass(frozen=True, eq=False)
class _Loader:
    """Loads versions with the settings of the server, within the worker's memory."""

    spec: ServerSpec
    threads: int
    placement: Placement
    memory: MemoryLimit

    def load(self, folder: Path, python: str = "") -> WarmVersion:
        """Load and warm up the version of a folder with the limits of the spec.
        `python` is as in `load_warm`.
        """
        spec = self.spec
        rows = max_batch_rows(spec)
        policy = None  # Batching does not help tiny models on a CPU.
        if rows > 1:
            policy = BatchPolicy(
                rows,
                spec.preferred_batch_size,
                spec.max_queue_delay_microseconds,
                spec.max_queue_size,
                pads=spec.is_on_nvidia,
            )
        with self.memory.loading(folder):
            warm = load_warm(
                folder,
                self.placement,
                self.threads,
                policy,
                check_determinism=spec.response_cache_bytes > 0,
                timeout_seconds=float(spec.request_timeout_seconds),
                concurrency=spec.threads,
                python=python,
            )
        # A value takes at least a byte of a body.
        most_values = max(spec.max_body_bytes, _LEAST_VALUES)
        warm.predictor.limit_values(most_values, max(rows, *spec.preferred_batch_size, 1))
        if isinstance(warm.predictor, OnnxModel):
            warm.predictor.max_text_characters = spec.max_text_characters
        return warm


def read_specs(state_dir: Path) -> list[EndpointSpec]:
    """Return the endpoints of spec.yaml; empty without the file. Raises InvalidConfig
    if spec.yaml is invalid.
    """
    try:
        text = (state_dir / SPEC).read_text()
    except FileNotFoundError:
        return []
    return load_stored_specs(text)
