"""Load one pod of a model on this machine, and measure its highest rate, its latency, its CPU and its memory.

The pod is `onnxserve serve` with all its processes, pinned to the cores of a pod. Another core sends the requests.
"""

import math
import os
import re
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

from mlflow_deploy_plugin.client.rows import encode_json
from mlflow_deploy_plugin.errors import DeploymentFailed, InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.evaluation import known_rows, take_rows
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.processes import Worker, read_log_tail
from mlflow_deploy_plugin.processes.child import die_with_parent
from mlflow_deploy_plugin.runtime import INPUT_EXAMPLE, PYTHON_FUNCTION, OnnxModel, pyfunc_schema, read_served_artifact
from mlflow_deploy_plugin.runtime.feeds import no_batch_dimension_reason
from mlflow_deploy_plugin.runtime.session import available_cores
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.sizing.load import Sent, Times, open_loop, post, random_times
from mlflow_deploy_plugin.sizing.plan import NOTICEABLE_CPUS, PodMeasurement, count_pods
from mlflow_deploy_plugin.spec import EndpointSpec, apply_config, dump_spec
from mlflow_deploy_plugin.statedir import ServerState
from mlflow_deploy_plugin.statedir.files import LOG, SERVER, SPEC, read_state, temporary_folder

_BATCH_SIZES, _GAIN = (1, 8, 32), 1.1
"""The batch sizes to try. A larger batch size is selected if the rate increases by 10 %."""
_MOST_BODIES, _CONNECTIONS = 64, 64
_FIRST_REQUESTS, _FIRST_UTILIZATION, _LEAST_REQUESTS = 8, 0.2, 100
_STEP, _RESOLUTION, _SHORT = 4.0, 1.05, 0.3
"""The rate grows in steps of 4, with 30 % of the duration of a load. Then it is bisected to 5 %."""
SECONDS, STEADY_SECONDS = 6.0, 25.0
"""The duration of a load in the search, and of the last load. The agent ships the rows of a busy worker every 10 s."""
_TRIES = 3
"""A load that fails is repeated, because a short disturbance by other processes must not lower the rate."""
_CALL_SECONDS, _POLL_SECONDS = 3600.0, 0.05
_OF_CALLERS = ("api_keys", "jwt_issuer", "jwt_audience", "certfile", "keyfile", "ca_certs", "grpc_port")
"""Fields of `server` that the measured server does not have: its client has no key and no certificate."""


def request_bodies(folder: Path, rows: int) -> list[bytes]:
    """Return up to 64 bodies of `/invocations` with `rows` rows each: rows of the input example of the version in
    `folder`, otherwise of its reference or random rows. A model whose input is not rows receives its example unchanged.
    Raises InvalidConfig if the example does not fit the signature, or if nothing describes the rows."""
    artifact, example = read_served_artifact(folder), folder / INPUT_EXAMPLE
    if artifact.undescribed:
        if not example.is_file():
            raise InvalidConfig("the model has no input example and no signature of rows: log it with input_example=…")
        return [example.read_bytes()]
    schema = pyfunc_schema(artifact) if artifact.flavor == PYTHON_FUNCTION else OnnxModel.load(folder).schema
    try:
        known = known_rows(artifact, schema, _MOST_BODIES)
    except InvalidRequest as error:
        raise InvalidConfig(f"the model refuses its own example: {error.message}; log a valid input_example") from None
    if no_batch_dimension_reason(artifact):
        return [encode_json(known)]
    count = schema.count_rows(known)
    positions = [(start + np.arange(rows)) % count for start in range(min(count, _MOST_BODIES))]
    return [encode_json(take_rows(known, picked)) for picked in positions]


def measure_pod(
    spec: EndpointSpec,
    folder: Path,
    bodies: Sequence[bytes],
    rate: float,
    p99: float,
    headroom: float,
    progress: ProgressCallback,
) -> PodMeasurement:
    """Search the highest rate of a pod, and measure a new pod at its share of `rate`.

    The pod has the workers and threads (by default 1) of `spec.server`, and its batch size, otherwise the batch size
    with the highest rate.

    Args:
        folder: the version's files, which the pod serves.
        bodies: bodies of `/invocations`, which are sent in turn.
        rate: requests per second of all pods.
        p99: limit of the 99th percentile of the latency, in seconds.
        headroom: share of the highest rate that stays free.

    Raises:
        InvalidConfig: the version refuses its example, no rate meets `p99`, or the machine has too few cores.
        DeploymentFailed: the server did not start.
    """
    server, cores = spec.server, available_cores()
    requests = [post("/invocations", body) for body in bodies]
    threads = server.intra_op_num_threads or 1
    if server.workers * threads >= cores or not hasattr(os, "sched_setaffinity"):
        raise InvalidConfig(
            f"server.workers={server.workers} with {threads} threads each, and a client, need "
            f"{server.workers * threads + 1} cores of a Linux machine; this machine has {cores}: use another machine"
        )
    best, size, limit = None, 0, p99
    for batch_size in (server.max_batch_size,) if server.max_batch_size else _BATCH_SIZES:
        with _started(spec, folder, requests, threads, batch_size) as pod:
            load = pod.highest_load(limit, _GAIN * best.rate if best else 0, progress)
            is_disturbed = load.other_cpus > NOTICEABLE_CPUS and np.median(load.sent.latencies) <= p99
            if best is None and is_disturbed and not load.sent.wrong and load.sent.p99 > p99:
                limit += load.sent.p99  # Other processes add this latency at every rate.
                load = pod.highest_load(limit, load.rate, progress)
        if load.holds(limit):
            best, size = load, batch_size
        elif best is None:
            raise InvalidConfig(
                f"--p99 {p99 * 1e3:g}ms: the 99th percentile is {load.sent.p99 * 1e3:.3g} ms even at {load.rate:.2g} "
                "requests/s; set a larger --p99, or make the model faster with `onnxserve optimize`"
            )
    assert best is not None  # There is at least one batch size.
    share = rate / count_pods(rate, best.rate * (1 - headroom))
    with _started(spec, folder, requests, threads, size) as pod:
        pod.service_seconds()  # The client starts at the first call, which must not count as time without requests.
        load, memory = pod.load(share, STEADY_SECONDS, limit), pod.memory_bytes()
    return PodMeasurement(
        workers=server.workers,
        threads=threads,
        max_batch_size=size,
        cores=server.workers * threads,
        highest_rate=best.rate,
        highest_cpus=best.cpus,
        rate=share,
        p99=load.sent.p99,
        cpus=load.cpus,
        other_cpus=max(best.other_cpus, load.other_cpus),
        memory_bytes=memory,
        version_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    )


def highest_rate(holds: Callable[[float, bool], bool], rate: float) -> float:
    """Return the highest rate that holds, within 5 %, or 0 if the first `rate` does not hold. The second argument of
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
    """A load of `rate` requests per second. `cpus` and `other_cpus` are the CPU seconds per second of the pod, and of
    unrelated processes on the cores of the measurement."""

    rate: float
    sent: Sent
    cpus: float
    other_cpus: float

    def holds(self, p99: float) -> bool:
        """Return True if all answers are right, and the 99th percentile of the latency is at most `p99` seconds."""
        return not self.sent.wrong and self.sent.p99 <= p99


@dataclass(frozen=True)
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
            head, _, body = sent.wrong_answer.decode(errors="replace").partition("\r\n\r\n")
            answer = f"{head.split(' ', 2)[1]}: {one_line(body, 300)}" if head else "nothing within 10 s"
            raise InvalidConfig(f"the model answers its own example with {answer}; log a valid input_example")
        return float(sent.latencies.max()) / len(sent.latencies)

    def highest_load(self, p99: float, first_rate: float, progress: ProgressCallback) -> Load:
        """Return the highest load that holds, or the load at the first rate if it does not hold. Without `first_rate`,
        the first rate uses a fifth of the pod."""
        loads: dict[float, Load] = {}

        def holds(rate: float, is_growing: bool) -> bool:
            # The queue of a rate that is 5 % too high must exceed the limit at the end of the load.
            least = max(p99 / (_RESOLUTION - 1), _LEAST_REQUESTS / rate)
            loads[rate] = load = self.load(rate, max(SECONDS * (_SHORT if is_growing else 1), least), p99)
            progress(f"{rate:,.1f} requests/s: p99 {load.sent.p99 * 1e3:.3g} ms")
            return load.holds(p99)

        service_seconds = self.service_seconds()
        first_rate = first_rate or _FIRST_UTILIZATION / service_seconds
        return loads[highest_rate(holds, first_rate) or first_rate]

    def load(self, rate: float, seconds: float, p99: float) -> Load:
        """Send `rate` requests per second at random times, up to three times until the load holds `p99`. Return the
        load with the lowest latency."""
        loads: list[Load] = []
        while len(loads) < _TRIES and not (loads and loads[-1].holds(p99)):
            before, began = self._seconds(), time.monotonic()
            sent = self._send(random_times(rate, seconds, len(loads)), _CONNECTIONS, p99)
            cpus, other_cpus = ((self._seconds() - before) / (time.monotonic() - began)).tolist()
            loads.append(Load(rate, sent, cpus, max(0.0, other_cpus)))
        return min(loads, key=lambda load: (load.sent.wrong, load.sent.p99))

    def memory_bytes(self) -> int:
        """Return the peak memory of all processes in a container: each file once, each shared page of a fork once. The
        proportional set size is too small, because unrelated processes of this machine map the same libraries."""
        private, files = 0, defaultdict[str, int](int)
        for process in _tree(self.process):
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            private += int(peak[1]) * 1024 - process.memory_info().rss if peak else 0
            for part in process.memory_maps():
                is_file = part.path.startswith("/")
                private += part.anonymous if is_file else part.pss
                files[part.path] = max(files[part.path], part.rss - part.anonymous if is_file else 0)
        return private + sum(files.values())

    def _send(self, times: Times, connections: int, p99: float = math.inf) -> Sent:
        arguments = self.port, self.requests, times, connections, b"", p99, self.cores[-1:]
        return self.client.call(open_loop, *arguments, seconds=_CALL_SECONDS)

    def _seconds(self) -> Times:
        """Return [2] CPU seconds: of the pod, and of the processes on its cores that this process did not start."""
        every, pod, own = psutil.cpu_times(percpu=True), _cpu_seconds(self.process), _cpu_seconds(psutil.Process())
        busy = sum(sum(every[core]) - every[core].idle - every[core].iowait for core in self.cores)
        return np.array([pod, busy - own])


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_seconds(process: psutil.Process) -> float:
    return sum(sum(part.cpu_times()[:2]) for part in _tree(process))


@contextmanager
def _started(
    spec: EndpointSpec, folder: Path, requests: Sequence[bytes], threads: int, batch_size: int
) -> Iterator[_Pod]:
    """Serve the files in `folder` with the server of `spec`, and yield the pod when it is ready."""
    cores, parent = sorted(os.sched_getaffinity(0))[: spec.server.workers * threads + 1], os.getpid()

    def prepare() -> None:
        die_with_parent(signal.SIGTERM, parent)
        os.sched_setaffinity(0, cores[:-1])

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    fields = {f"server.{name}": "" for name in _OF_CALLERS} | {
        "server.host": "127.0.0.1",
        "server.port": port,
        "server.intra_op_num_threads": threads,
        "server.max_batch_size": batch_size,
        f"variants.{spec.name}.model": str(folder),
    }
    with temporary_folder("onnxserve-size-") as state_dir, (state_dir / LOG).open("wb") as log:
        (state_dir / SPEC).write_text(dump_spec(apply_config(spec, fields)))
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", "--spec", str(state_dir / SPEC)]
        command += ["--state-dir", str(state_dir)]
        # The captured rows must not be added to the user's inference log.
        environment = {**os.environ, "ONNXSERVE_HOME": str(state_dir / "home"), "ONNXSERVE_LOG_URI": ""}
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=prepare,  # noqa: PLW1509 - both calls only set attributes of the process
            process_group=0,
        )
        client = Worker()
        try:
            end = time.monotonic() + load_settings().ready_timeout_seconds
            while (state := read_state(state_dir / SERVER, ServerState)) is None or state.phase != "serving":
                if server.poll() is not None or time.monotonic() > end:
                    raise psutil.NoSuchProcess(server.pid)
                time.sleep(_POLL_SECONDS)
            yield _Pod(psutil.Process(server.pid), port, cores, client, requests)
        except psutil.NoSuchProcess:
            line = (read_log_tail(state_dir / LOG) or ["its log is empty"])[-1].removeprefix("Error: ")
            raise DeploymentFailed(f"the measured server is not available: {line}") from None
        finally:
            client.end()
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(spec.server.stop_seconds)
            server.kill()
