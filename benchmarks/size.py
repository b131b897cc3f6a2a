"""Compare the figures of `onnxserve size` with a real load, for five models.

    # about twenty minutes on two idle cores; as root
    .venv/bin/python benchmarks/size.py
    .venv/bin/python benchmarks/size.py --only pyfunc --rounds 3

Each round sizes a model for 2,000 requests/s and a 99th percentile of 20 ms, with batch
size 1 to save time. Then it starts `onnxserve serve` with the resulting options on one
core, sends the rate of a pod for 25 s, and bisects the highest rate that meets 20 ms.
The requests have other random times than those of `size`, and the kernel measures CPU
and memory in a cgroup (version 1) of the server. If this process may not create it, the
memory is NaN. A ratio is sized ÷ real, the median of the rounds.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import mlflow_deploy_plugin as onnxserve
from benchmarks.serving import models
from benchmarks.serving.servers import CLIENT_CORE, Server, free_port, running
from mlflow_deploy_plugin.core.processes.worker import Worker
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.sizing.load import open_loop, post, random_times, tail_latency
from mlflow_deploy_plugin.ship.sizing.measure import highest_rate, measure_pod, request_bodies
from mlflow_deploy_plugin.ship.sizing.plan import PodMeasurement

RATE = 2000.0
P99 = 0.02
SECONDS = 25.0
BATCH_SIZE = {"server.max_batch_size": 1}
_WORDS = [
    "good",
    "bad",
    "fine",
    "awful",
    "great",
    "poor",
    "nice",
    "ugly",
    "excellent",
    "terrible",
    "film",
    "plot",
]


class Rule(mlflow.pyfunc.PythonModel):
    """A model without an ONNX form: a rule in pandas."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return (model_input["a"].clip(0) * 2 + model_input["b"]).to_numpy()


def logistic(folder: Path) -> Path:
    return models.small(folder)[0].ours


def boosting(folder: Path) -> Path:
    return models.flights(folder)[0].ours


def network(folder: Path) -> Path:
    return models.digits_cnn(folder)[0].ours


def texts(folder: Path) -> Path:
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"text": [" ".join(random.choice(_WORDS, 40)) for _ in range(2000)]})
    vectors = TfidfVectorizer(token_pattern="[a-zA-Z]+", ngram_range=(1, 2))
    steps = ColumnTransformer([("text", vectors, "text")]), LogisticRegression()
    classifier = make_pipeline(*steps).fit(rows, rows["text"].str.contains("good film"))
    onnxserve.save_model(classifier, folder / "texts", input_example=rows[:64])
    return folder / "texts"


def pyfunc(folder: Path) -> Path:
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(64, 2)), columns=["a", "b"])
    signature = infer_signature(rows, np.zeros(64))
    mlflow.pyfunc.save_model(
        folder / "pyfunc",
        python_model=Rule(),
        input_example=rows,
        signature=signature,
    )
    return folder / "pyfunc"


MODELS: dict[str, Callable[[Path], Path]] = {
    made.__name__: made for made in (logistic, boosting, network, texts, pyfunc)
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(MODELS),
        default=list(MODELS),
        help="run only these models",
    )
    parser.add_argument("--rounds", type=int, default=1, help="rounds over all models (1)")
    options = parser.parse_args()
    ratios: dict[str, list[tuple[float, ...]]] = {name: [] for name in options.only}
    with tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-") as temporary:
        folders = {name: MODELS[name](Path(temporary)) for name in options.only}
        for name, folder in [*folders.items()] * options.rounds:
            bodies = request_bodies(folder, 1)
            spec = new_endpoint(name, str(folder), BATCH_SIZE)
            pod = measure_pod(spec, folder, bodies, RATE, P99, _say)
            rate, cpus, memory = _real_load(name, folder, pod, bodies)
            planned = pod.planned
            ratios[name].append(
                (
                    pod.highest.rate / rate if rate else math.inf,
                    planned.cpus / cpus,
                    pod.memory_bytes / memory,
                ),
            )
            print(
                f"{name}: {pod.highest.rate:,.0f}/s sized, {rate:,.0f}/s real; {planned.cpus:.3f} "
                f"and {cpus:.3f} cores at {planned.rate:,.0f}/s; {pod.memory_bytes / 1e6:.0f} and "
                f"{memory / 1e6:.0f} MB; batch size {pod.max_batch_size}; other jobs "
                f"{planned.other_cpus:.1f} cores",
                flush=True,
            )
    print("\n| model | rate | CPU | memory |\n|---|---|---|---|")
    for name, rounds in ratios.items():
        print(
            f"| {name} |",
            " | ".join(f"{statistics.median(column):.2f}" for column in zip(*rounds, strict=True)),
            "|",
        )
    return 0


def _real_load(
    name: str,
    folder: Path,
    pod: PodMeasurement,
    bodies: Sequence[bytes],
) -> tuple[float, float, float]:
    """Return the highest rate of a server, and its CPU seconds per second and its
    memory in bytes at the rate of `pod.planned`.
    """
    requests = [post("/invocations", body) for body in bodies]

    def send(server: Server, rate: float, seconds: float) -> bool:
        for seed in (100, 101, 102):  # A load that fails is repeated, like in `size`.
            times = random_times(rate, seconds, seed)
            latencies, error = client.call(open_loop, server.port, requests, times, seconds=600.0)
            p99 = tail_latency(latencies)
            _say(f"{name}: real load of {rate:,.0f} requests/s, p99 {p99 * 1e3:.3g} ms {error}")
            if not error and p99 <= P99:
                return True
        return False

    client = Worker()
    client.call(os.sched_setaffinity, 0, [CLIENT_CORE], seconds=60.0)
    with _served(folder, pod, bodies[0]) as (server, group):
        before = group.cpu_seconds()
        began = time.monotonic()
        send(server, pod.planned.rate, SECONDS)
        cpus = (group.cpu_seconds() - before) / (time.monotonic() - began)
        memory = group.peak_bytes() + _mapped_bytes(server)  # NaN without a cgroup
    with _served(folder, pod, bodies[0]) as (server, _):
        rate = highest_rate(lambda rate: send(server, rate, 5.0), 0.5 * pod.highest.rate)
    client.end()
    return rate, cpus, memory


def _mapped_bytes(server: Server) -> int:
    """Return the size of the mapped pages of files, each file once. The kernel charges
    them to the group that read them first: on this machine another group, in a
    container the container.
    """
    sizes: dict[str, int] = {}
    for process in server.processes():
        for part in process.memory_maps():
            if part.path.startswith("/"):
                sizes[part.path] = max(sizes.get(part.path, 0), part.rss - part.anonymous)
    return sum(sizes.values())


@dataclass(frozen=True)
class _Group:
    """The cgroups (version 1) of a server; none if this process may not create them."""

    folders: Sequence[Path]
    server: Server

    def cpu_seconds(self) -> float:
        if not self.folders:
            return float(sum(sum(process.cpu_times()[:2]) for process in self.server.processes()))
        return int((self.folders[0] / "cpuacct.usage").read_text()) / 1e9

    def peak_bytes(self) -> float:
        """Return the peak of the memory without the cache of files, which the kernel
        frees when it needs memory.
        """
        if not self.folders:
            return math.nan
        stat = dict(
            line.split() for line in (self.folders[1] / "memory.stat").read_text().splitlines()
        )
        return int((self.folders[1] / "memory.max_usage_in_bytes").read_text()) - int(
            stat["total_cache"],
        )


@contextmanager
def _served(folder: Path, pod: PodMeasurement, body: bytes) -> Iterator[tuple[Server, _Group]]:
    """Start `onnxserve serve` with the printed options in a cgroup."""
    port = free_port()
    fields = {
        "workers": pod.workers,
        "intra_op_num_threads": pod.threads,
        "max_batch_size": pod.max_batch_size,
    }
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "serve",
        str(folder),
        "-p",
        str(port),
    ]
    command += [
        word for field, value in fields.items() for word in ("-C", f"server.{field}={value}")
    ]
    headers = {"Content-Type": "application/json"}
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        body,
        headers,
        method="POST",
    )
    folders = [
        Path("/sys/fs/cgroup") / controller / f"size-{port}" for controller in ("cpuacct", "memory")
    ]
    if all(os.access(folder.parent, os.W_OK) for folder in folders):
        for folder in folders:
            folder.mkdir()
        enter = 'echo $$ > $1/cgroup.procs; echo $$ > $2/cgroup.procs; shift 2; exec "$@"'
        command = ["sh", "-c", enter, "sh", *map(str, folders), *command]
    else:
        folders = []
    try:
        with tempfile.TemporaryDirectory(prefix="onnxserve-home-") as home:
            log = Path(home) / "server.log"
            environment = {"ONNXSERVE_HOME": home}
            with running("onnxserve", command, port, log, environment, question) as server:
                yield server, _Group(folders, server)
    finally:
        for folder in folders:
            folder.rmdir()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
