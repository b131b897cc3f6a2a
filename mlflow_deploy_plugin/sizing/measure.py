"""Load one pod of a model on this machine, and measure its highest rate, its latency, its CPU and its memory.

The pod is `onnxserve serve` with all its processes, pinned to the cores of a pod. Another core sends the requests.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from mlflow_deploy_plugin.client.rows import BODY_FORMS, dump_json, encode_json
from mlflow_deploy_plugin.errors import DeploymentFailed, InvalidConfig, NotReady
from mlflow_deploy_plugin.evaluation import known_rows
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.processes import Worker, read_log_tail
from mlflow_deploy_plugin.processes.child import die_with_parent
from mlflow_deploy_plugin.runtime import INPUT_EXAMPLE, PYTHON_FUNCTION, OnnxModel, pyfunc_schema, read_served_artifact
from mlflow_deploy_plugin.runtime.feeds import Array, no_batch_dimension_reason
from mlflow_deploy_plugin.runtime.session import available_cores
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.sizing.load import CONNECTIONS, Sent, is_ok, open_loop, post, random_times
from mlflow_deploy_plugin.sizing.plan import PodMeasurement
from mlflow_deploy_plugin.spec import EndpointSpec, apply_config, dump_spec
from mlflow_deploy_plugin.statedir import ServerState
from mlflow_deploy_plugin.statedir.files import LOG, SERVER, SPEC, read_state, temporary_folder

BATCH_SIZES = (1, 8, 32)
_GAIN = 1.1
"""A larger batch size must increase the rate by 10 %."""
_MOST_BODIES = 64
_FIRST_REQUESTS, _FIRST_UTILIZATION, _LEAST_REQUESTS = 8, 0.2, 100
_STEP, _RESOLUTION = 4.0, 1.04
_SHORT = 0.3
"""The share of the duration of a load while the rate still grows in steps."""
_STEADY_SECONDS = 12.0
"""The agent ships the captured rows of a busy worker every 10 s, which the CPU of a pod must include."""
_TRIES, _DISTURBED, _CLIENT_LIMIT = 3, 0.1, 0.9
_CALL_SECONDS, _POLL_SECONDS = 3600.0, 0.05
_OF_CALLERS = ("api_keys", "jwt_issuer", "jwt_audience", "certfile", "keyfile", "ca_certs", "grpc_port")
"""Fields of `server` that the measured server does not have: its client has no key and no certificate."""


def request_bodies(folder: Path, rows: int) -> list[bytes]:
    """Return up to 64 bodies of `/invocations` with `rows` rows each, from the input example of the version in
    `folder`, otherwise from its reference or random numbers. Raises InvalidConfig if it has no example and no schema."""
    artifact = read_served_artifact(folder)
    if (folder / INPUT_EXAMPLE).is_file():
        document = json.loads((folder / INPUT_EXAMPLE).read_bytes())
    elif artifact.undescribed:
        raise InvalidConfig("the model has neither an input example nor a signature: log it with input_example=…")
    else:
        is_pyfunc = artifact.flavor == PYTHON_FUNCTION
        schema = pyfunc_schema(artifact) if is_pyfunc else OnnxModel.load(folder).schema
        document = json.loads(encode_json(known_rows(artifact, schema, _MOST_BODIES)))
    form = next((name for name in BODY_FORMS if name in document), "")
    if not form or no_batch_dimension_reason(artifact):
        return [dump_json(document)]
    is_split = form == "dataframe_split"
    table = document[form]["data"] if is_split else document[form]
    columns = table if isinstance(table, dict) else {"": table}
    count = min((len(values) for values in columns.values() if isinstance(values, list)), default=1)
    bodies = []
    for start in range(min(count, _MOST_BODIES)):
        picked = [(start + row) % count for row in range(rows)]
        taken = {name: [v[i] for i in picked] if isinstance(v, list) else v for name, v in columns.items()}
        part = taken if isinstance(table, dict) else taken[""]
        bodies.append(dump_json({**document, form: {**document[form], "data": part} if is_split else part}))
    return bodies


def measure_pod(
    spec: EndpointSpec,
    folder: Path,
    bodies: Sequence[bytes],
    p99: float,
    headroom: float,
    seconds: float,
    progress: ProgressCallback,
) -> PodMeasurement:
    """Measure the pod with the fewest threads that meets `p99`, and with the batch size that gives the highest rate.

    The fields workers, intra_op_num_threads and max_batch_size are not changed if `spec.server` sets them.

    Args:
        folder: the version's files, which the pod serves.
        bodies: bodies of `/invocations`, which are sent in turn.
        p99: limit of the 99th percentile of the latency, in seconds.
        headroom: share of the highest rate that the planned rate leaves free.
        seconds: duration of a load.

    Raises:
        InvalidConfig: the version refuses its own example, no rate meets `p99`, or this machine has too few cores.
        NotReady: other processes disturb the measurement.
        DeploymentFailed: the server did not start.
    """
    workers, cores = spec.server.workers, available_cores()
    requests = [post("/invocations", body) for body in bodies]

    def measure(threads: int, batch_size: int, rate: float = 0.0) -> PodMeasurement | Load:
        """Return the figures of a pod, or the load at the first rate if its latency does not fit."""
        if workers * threads >= cores or not hasattr(os, "sched_setaffinity"):
            raise InvalidConfig(
                f"server.workers={workers} with {threads} threads each, and a client, need {workers * threads + 1} cores "
                f"of a Linux machine, and this machine has {cores}: use another machine, or fewer workers"
            )
        fields = {"server.intra_op_num_threads": threads, "server.max_batch_size": batch_size}
        with _started(apply_config(spec, fields), folder, requests, workers * threads) as pod:
            load = None

            def holds(rate: float, is_growing: bool) -> bool:
                nonlocal load
                load = pod.load(rate, seconds * (_SHORT if is_growing else 1), p99)
                progress(f"batch size {batch_size}: {rate:,.1f} requests/s, p99 {load.sent.p99 * 1e3:.3g} ms")
                return load.holds(p99)

            highest = highest_rate(holds, rate or _FIRST_UTILIZATION / pod.service_seconds())
            if not highest:
                return load
            rate = highest * (1 - headroom)
            load = pod.load(rate, max(seconds, _STEADY_SECONDS), p99)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            figures = highest, rate, load.sent.p99, load.cpus, pod.memory_bytes(), size
            return PodMeasurement(workers, threads, batch_size, workers * threads, *figures)

    size, *larger = (spec.server.max_batch_size,) if spec.server.max_batch_size else BATCH_SIZES
    threads = spec.server.intra_op_num_threads or 1
    while isinstance(best := measure(threads, size), Load):
        threads *= 2
        if spec.server.intra_op_num_threads or workers * threads >= cores:
            raise InvalidConfig(
                f"--p99 {p99 * 1e3:g}ms: the 99th percentile is {best.sent.p99 * 1e3:.3g} ms even at {best.rate:.2g} "
                "requests/s; set a larger --p99, or make the model faster with `onnxserve optimize`"
            )
    for batch_size in larger:
        larger_batches = measure(threads, batch_size, _GAIN * best.highest_rate)
        best = best if isinstance(larger_batches, Load) else larger_batches
    return best


def highest_rate(holds: Callable[[float, bool], bool], rate: float) -> float:
    """Return the highest rate that holds, within 4 %, or 0 if the first `rate` does not hold. The second argument of
    `holds` is True while the rate still grows in large steps."""
    low, high = 0.0, math.inf
    while high > low * _RESOLUTION and (low or high == math.inf):
        if holds(rate, high == math.inf):
            low = rate
        else:
            high = rate
        rate = low * _STEP if high == math.inf else math.sqrt(low * high)
    return low


@dataclass(frozen=True)
class Load:
    """A load with `rate` requests per second. `cpus` are the CPU seconds per second of all processes of the pod."""

    rate: float
    sent: Sent
    cpus: float

    def holds(self, p99: float) -> bool:
        """Return True if all answers are right, and the 99th percentile of the latency is at most `p99` seconds."""
        return not self.sent.wrong and self.sent.p99 <= p99


@dataclass
class _Pod:
    """A running server, and the client that loads it from the last of the cores."""

    process: psutil.Process
    port: int
    cores: Sequence[int]
    client: Worker
    requests: Sequence[bytes]

    def service_seconds(self) -> float:
        """Return the seconds of a request without other requests. Raises InvalidConfig if an answer is an error."""
        sent = self._send(np.zeros(_FIRST_REQUESTS), 1)
        if sent.wrong:
            head, _, body = sent.wrong_answer.partition(b"\r\n\r\n")
            status, reason = head.split(b" ", 2)[1].decode(), one_line(body.decode(errors="replace"), 300)
            raise InvalidConfig(f"the model answers {status} to its own example: {reason}; log a valid input_example")
        return float(sent.latencies.max()) / _FIRST_REQUESTS

    def load(self, rate: float, seconds: float, p99: float) -> Load:
        """Send `rate` requests per second at random times. Repeat a load that does not hold `p99` while other processes
        use the cores. Raises NotReady after three such loads, and InvalidConfig if the client is too slow."""
        for seed in range(_TRIES):
            cpu, busy, began = self._cpu_seconds(), self._busy_seconds(), time.monotonic()
            sent = self._send(random_times(rate, max(seconds, _LEAST_REQUESTS / rate), seed))
            elapsed = time.monotonic() - began
            cpu = self._cpu_seconds() - cpu
            load = Load(rate, sent, cpu / elapsed)
            others = (self._busy_seconds() - busy - cpu - sent.cpu_seconds) / elapsed
            if load.holds(p99) or others < _DISTURBED * len(self.cores):
                break
        else:
            raise NotReady(
                f"other processes use {others:.1f} of the {len(self.cores)} cores that are measured: end them first"
            )
        if not load.holds(p99) and sent.busy > _CLIENT_LIMIT:
            raise InvalidConfig(
                f"--rate: the client of this machine sends at most {rate:,.0f} requests/s, and a pod may answer more: measure a smaller pod "
                "(-C server.workers=1), or more --rows per request"
            )
        return load

    def memory_bytes(self) -> int:
        """Return the memory of all processes, as a container's limit counts it: shared pages and files once."""
        private, files = 0, defaultdict[str, int](int)
        for process in self._processes():
            for part in process.memory_maps():
                if part.path.startswith("/"):
                    private += part.anonymous
                    files[part.path] = max(files[part.path], part.rss - part.anonymous)
                else:
                    private += part.pss
        return private + sum(files.values())

    def _send(self, times: Array, connections: int = CONNECTIONS) -> Sent:
        arguments = self.port, self.requests, times, connections, is_ok, self.cores[-1:]
        return self.client.call(open_loop, *arguments, seconds=_CALL_SECONDS)

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def _cpu_seconds(self) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._processes()))

    def _busy_seconds(self) -> float:
        every = psutil.cpu_times(percpu=True)
        return sum(sum(every[core]) - every[core].idle - every[core].iowait for core in self.cores)


@contextmanager
def _started(spec: EndpointSpec, folder: Path, requests: Sequence[bytes], count: int) -> Iterator[_Pod]:
    """Serve the files in `folder` with the server of `spec` on `count` cores, and yield the pod when it is ready."""
    cores, parent = sorted(os.sched_getaffinity(0))[: count + 1], os.getpid()

    def prepare() -> None:
        die_with_parent(signal.SIGTERM, parent)
        os.sched_setaffinity(0, cores[:-1])

    with temporary_folder("onnxserve-size-") as state_dir, socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
        free.close()
        local = {"server.port": port, "server.host": "127.0.0.1", f"variants.{spec.name}.model": str(folder)}
        (state_dir / SPEC).write_text(
            dump_spec(apply_config(spec, {**dict.fromkeys([f"server.{name}" for name in _OF_CALLERS], ""), **local}))
        )
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve"]
        command += ["--spec", str(state_dir / SPEC), "--state-dir", str(state_dir)]
        environment = {**os.environ, "ONNXSERVE_HOME": str(state_dir / "home"), "ONNXSERVE_LOG_URI": ""}
        with (state_dir / LOG).open("wb") as log:
            server = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=prepare, process_group=0
            )
        client = Worker()
        try:
            end = time.monotonic() + load_settings().ready_timeout_seconds
            while (state := read_state(state_dir / SERVER, ServerState)) is None or state.phase != "serving":
                if server.poll() is not None or time.monotonic() > end:
                    line = (read_log_tail(state_dir / LOG) or ["its log is empty"])[-1].removeprefix("Error: ")
                    raise DeploymentFailed(f"the server of the measurement did not start: {line}")
                time.sleep(_POLL_SECONDS)
            yield _Pod(psutil.Process(server.pid), port, cores, client, requests)
        finally:
            client.end()
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(spec.server.stop_seconds)
            server.kill()
