"""Load a pod of a model on this machine: `onnxserve serve` with all its processes,
pinned to the cores of a pod. Another core sends the requests.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from mlflow_deploy_plugin.contrib.sizing.load import (
    Times,
    open_loop,
    post,
    random_times,
    tail_latency,
)
from mlflow_deploy_plugin.contrib.sizing.plan import Load, PodMeasurement, count_pods
from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE, PYTHON_FUNCTION, folder_bytes
from mlflow_deploy_plugin.core.processes.child import die_with_parent, read_log_tail
from mlflow_deploy_plugin.core.processes.worker import Worker
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.files import LOG, SERVER, SPEC, read_state, temporary_folder
from mlflow_deploy_plugin.core.statedir.models import ServerState
from mlflow_deploy_plugin.serve.client.rows import encode_json
from mlflow_deploy_plugin.serve.runtime.feeds import no_batch_dimension_reason
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import pyfunc_schema
from mlflow_deploy_plugin.serve.runtime.session import available_cores
from mlflow_deploy_plugin.ship.deployments.backends import supervisor
from mlflow_deploy_plugin.wrap.evaluation.dataset import known_rows, take_rows

_BATCH_SIZES = (1, 8, 32, 1)
_GAIN = 1.3
"""The batch sizes to try. A larger batch size is selected for a gain of 30 %, after 1
was tried again.
"""
SECONDS = 5.0
STEADY_SECONDS = 25.0
"""The duration of a load in the search, and of the last load. The agent ships the rows
of a busy worker every 10 s.
"""
_TRIES = 3  # A load that fails is repeated, because a short disturbance must not lower the rate.
_STEP = 4.0
_RESOLUTION = 1.05
_LEAST_REQUESTS = 100
_FIRST_REQUESTS = 8
_FIRST_UTILIZATION = 0.2
_MOST_BODIES = 64
_CALL_SECONDS = 3600.0
_POLL_SECONDS = 0.05
_OF_CALLERS = (
    *("server.api_keys", "server.jwt_issuer", "server.jwt_audience"),
    *("server.certfile", "server.keyfile", "server.ca_certs", "server.grpc_port"),
)
"""Fields of `server` that the measured server does not have: its client has no key and
no certificate.
"""


def request_bodies(folder: Path, rows: int) -> list[bytes]:
    """Return up to 64 bodies of `/invocations` with `rows` rows each: rows of the input
    example of the version in `folder`, otherwise of its reference or random rows. A
    model whose input is not rows receives its example unchanged. Raises InvalidConfig
    if the example does not fit the signature, or if nothing describes the rows.
    """
    artifact = read_served_artifact(folder)
    example = folder / INPUT_EXAMPLE
    if artifact.undescribed:
        if not example.is_file():
            raise InvalidConfig(
                "the model has no input example and no signature of rows: log it with "
                "input_example=…"
            )
        return [example.read_bytes()]
    if artifact.flavor == PYTHON_FUNCTION:
        schema = pyfunc_schema(artifact)
    else:
        schema = OnnxModel.load(folder).schema
    try:
        sample_rows = known_rows(artifact, schema, _MOST_BODIES)
    except InvalidRequest as error:
        raise InvalidConfig(
            f"the model refuses its own example: {error.message}; log a valid input_example"
        ) from None
    if no_batch_dimension_reason(artifact):
        return [encode_json(sample_rows)]
    count = schema.count_rows(sample_rows)
    positions = [(start + np.arange(rows)) % count for start in range(min(count, _MOST_BODIES))]
    return [encode_json(take_rows(sample_rows, picked)) for picked in positions]


def measure_pod(
    spec: EndpointSpec,
    folder: Path,
    bodies: Sequence[bytes],
    rate: float,
    p99: float,
    progress: ProgressCallback,
) -> PodMeasurement:
    """Search the highest rate of a pod at which the 99th percentile of the latency is
    at most `p99` seconds. Then measure a new pod at its share of `rate` requests per
    second.

    Args:
        spec: the endpoint. The pod has the workers and threads (by default 1) of its
            `server`, and its batch size, otherwise the size that has the highest rate.
        folder: the version that the pod serves.
        bodies: the bodies of `/invocations`, which are sent in turn.
        rate: the requests per second that all pods must answer.
        p99: the limit of the 99th percentile of the latency in seconds.
        progress: receives one line per load.

    Raises InvalidConfig if the version refuses its example, no rate meets `p99`, or the
    machine has too few cores, and DeploymentFailed if the server did not start or has
    ended.
    """
    workers = spec.server.workers
    threads = spec.server.intra_op_num_threads or 1
    if sys.platform != "linux":
        raise InvalidConfig(
            "sizing pins processes to cores, which needs Linux: use a Linux machine or container"
        )
    # The pod and its client need cores of their own.
    if workers * threads >= available_cores():
        raise InvalidConfig(
            f"server.workers={workers} with {threads} threads each, and a client, need "
            f"{workers * threads + 1} cores, but this machine has {available_cores()}: use another "
            "machine"
        )
    fields = {
        **dict.fromkeys(_OF_CALLERS, ""),
        "server.host": "127.0.0.1",
        f"variants.{spec.name}.model": str(folder),
        "server.intra_op_num_threads": threads,
    }
    spec = apply_config(spec, fields)
    requests = [post("/invocations", body) for body in bodies]
    sizes: Sequence[int] = _BATCH_SIZES
    if spec.server.max_batch_size:
        sizes = [spec.server.max_batch_size]
    best: Load | None = None
    size = 0
    for tried in sizes:
        if tried == size:
            continue
        first_rate = 0.0
        if best is not None:
            gain = _GAIN if tried > size else 1 / _GAIN
            first_rate = best.rate * gain
        with _started(spec, tried, requests) as pod:
            load = pod.highest_load(p99, first_rate, progress)
        if best is None or load.holds(p99):
            best = load
            size = tried
        best.require(p99)
    assert best is not None  # There is at least one batch size.
    with _started(spec, size, requests) as pod:
        load = pod.load(rate / count_pods(rate, best.rate), STEADY_SECONDS, p99)
        memory = pod.memory_bytes()
    # A higher rate has met `p99`, so a higher latency comes from other processes.
    load.require(math.inf)
    return PodMeasurement(
        workers,
        threads,
        size,
        best,
        load,
        memory,
        version_bytes=folder_bytes(folder),
    )


def highest_rate(holds: Callable[[float], bool], rate: float) -> float:
    """Return the highest rate that holds, within 5 %, or 0 if the first `rate` does not
    hold.
    """
    low = 0.0
    high = math.inf
    while high > low * _RESOLUTION and (low or high == math.inf):
        if holds(rate):
            low = rate
        else:
            high = rate
        rate = low * _STEP if high == math.inf else math.sqrt(low * high)
    return low


@dataclass(frozen=True)
class _Pod:
    """A running server, and `open_loop` in a process on another core."""

    process: psutil.Process
    send: Callable[[Times], tuple[Times, str]]

    def highest_load(self, p99: float, first_rate: float, progress: ProgressCallback) -> Load:
        """Return the highest load that holds, or the load at the first rate (by default
        a fifth of the pod's rate).
        """
        loads: dict[float, Load] = {}

        def holds(rate: float) -> bool:
            # The queue of a rate that is 5 % too high must exceed the limit at the end
            # of the load.
            seconds = max(SECONDS, p99 / (_RESOLUTION - 1), _LEAST_REQUESTS / rate)
            load = self.load(rate, seconds, p99)
            loads[rate] = load
            progress(f"{rate:,.1f} requests/s: p99 {load.p99 * 1e3:.3g} ms")
            return load.holds(p99)

        if not first_rate:
            latencies, _ = self.send(np.zeros(_FIRST_REQUESTS))
            first_rate = _FIRST_UTILIZATION * _FIRST_REQUESTS / tail_latency(latencies)
        return loads[highest_rate(holds, first_rate) or first_rate]

    def load(self, rate: float, seconds: float, p99: float) -> Load:
        """Send a load, up to three times until it holds `p99`. Return the load with the
        lowest latency.
        """
        loads: list[Load] = []
        while len(loads) < _TRIES and not (loads and loads[-1].holds(p99)):
            before = self._cpu_seconds()
            began = time.monotonic()
            latencies, error = self.send(random_times(rate, seconds, len(loads)))
            used_seconds = self._cpu_seconds() - before
            cpus, other_cpus = (used_seconds / (time.monotonic() - began)).tolist()
            p99_seconds = tail_latency(latencies)
            loads.append(Load(rate, p99_seconds, error, cpus, other_cpus=max(0.0, other_cpus)))
        return min(loads, key=lambda load: (load.error, load.p99))

    def memory_bytes(self) -> int:
        """Return the peak memory of all processes in a container: each file once, each
        shared page of a fork once. The proportional set size is too small, because
        unrelated processes of this machine map the same libraries.
        """
        if sys.platform != "linux":
            raise NotImplementedError  # `measure_pod` refuses other systems.
        private = 0
        files = dict[str, int]()
        for process in [self.process, *self.process.children(recursive=True)]:
            peak = Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2]
            if peak:
                private += int(peak.split()[0]) * 1024 - process.memory_info().rss
            for part in process.memory_maps():
                if part.path.startswith("/"):
                    private += part.anonymous
                    shared = part.rss - part.anonymous
                    files[part.path] = max(files.get(part.path, 0), shared)
                else:
                    private += part.pss
        return private + sum(files.values())

    def _cpu_seconds(self) -> Times:
        """Return [2] CPU seconds: of the pod, and of the processes on this machine that
        this process did not start.
        """
        if sys.platform != "linux":
            raise NotImplementedError  # `measure_pod` refuses other systems.
        machine = psutil.cpu_times()
        pod = _cpu_seconds_of(self.process)
        own = _cpu_seconds_of(psutil.Process())
        others = sum(machine) - machine.idle - machine.iowait - own
        return np.array([pod, others])


def _cpu_seconds_of(root: psutil.Process) -> float:
    processes = [root, *root.children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def _started(spec: EndpointSpec, batch_size: int, requests: Sequence[bytes]) -> Iterator[_Pod]:
    """Serve `spec`, and yield the pod when it is ready."""
    if sys.platform != "linux":
        raise NotImplementedError  # `measure_pod` refuses other systems.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    spec = apply_config(spec, {"server.port": port, "server.max_batch_size": batch_size})
    count = spec.server.workers * (spec.server.intra_op_num_threads or 1)
    cores = sorted(os.sched_getaffinity(0))[: count + 1]
    with temporary_folder("onnxserve-size-") as state_dir, (state_dir / LOG).open("wb") as log:
        (state_dir / SPEC).write_text(dump_spec(spec))
        # The captured rows must not be added to the user's inference log.
        home = {"ONNXSERVE_HOME": str(state_dir / "home"), "ONNXSERVE_LOG_URI": ""}
        server = subprocess.Popen(
            supervisor.command(state_dir),
            stdout=log,
            stderr=log,
            env={**os.environ, **home},
            preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),  # noqa: PLW1509 - only a system call
            process_group=0,
        )
        client = Worker()
        process = psutil.Process(server.pid)
        try:
            process.cpu_affinity(cores[:-1])
            client.call(os.sched_setaffinity, 0, cores[-1:], seconds=_CALL_SECONDS)
            end = time.monotonic() + load_settings().ready_timeout_seconds
            state = read_state(state_dir / SERVER, ServerState)
            while state is None or state.phase != "serving":
                if server.poll() is not None or time.monotonic() > end:
                    raise psutil.NoSuchProcess(server.pid)
                time.sleep(_POLL_SECONDS)
                state = read_state(state_dir / SERVER, ServerState)
            yield _Pod(
                process, partial(client.call, open_loop, port, requests, seconds=_CALL_SECONDS)
            )
        except psutil.NoSuchProcess:
            reason = (read_log_tail(state_dir / LOG) or ["its log is empty"])[-1]
            raise DeploymentFailed(
                f"the measured server is not available: {reason.removeprefix('Error: ')}"
            ) from None
        finally:
            client.end()
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(spec.server.stop_seconds)
            server.kill()
