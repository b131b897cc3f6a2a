"""Measure the cost of many small models in one server: start, memory, latency, and a
change while it runs.

    # 200 models and 2 workers; a minute on two cores
    .venv/bin/python -m benchmarks.many_endpoints

Two servers run next to each other, with one and with many endpoints. Each model has its
own files and session (a logistic regression over 30 columns). Both servers receive
requests in alternating rounds, for always the same endpoint, and for each endpoint in
turn.
"""

import argparse
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sklearn.linear_model import LogisticRegression

from mlflow_deploy_plugin import save_model

COLUMNS = 30
PATIENCE_SECONDS = 300
HEADERS = {"Content-Type": "application/json"}


@dataclass
class Server:
    """A running server and the CPU of its start."""

    process: subprocess.Popen[bytes]
    port: int
    start_seconds: float
    names: list[str]
    start_cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        times = [process.cpu_times() for process in self.processes()]
        self.start_cpu_seconds = sum(time.user + time.system for time in times)

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def mebibytes(self) -> float:
        """Return the memory of all processes, in which shared pages count once."""
        return float(sum(process.memory_full_info().pss for process in self.processes()) / 2**20)

    def workers(self) -> list[psutil.Process]:
        """Return the workers: the grandchildren of the supervisor, which are children
        of gunicorn.
        """
        children = psutil.Process(self.process.pid).children()
        return [worker for child in children for worker in child.children()]

    def worker_mebibytes(self) -> tuple[float, float]:
        """Return the resident and the unshared memory of a worker, as the mean of all
        workers.
        """
        infos = [worker.memory_full_info() for worker in self.workers()]
        return tuple(
            sum(getattr(info, kind) for info in infos) / len(infos) / 2**20
            for kind in ("rss", "uss")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--endpoints", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="requests in each round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxserve-many-") as folder:
        root = Path(folder)
        os.environ["ONNXSERVE_HOME"] = str(root / "home")
        models = [make_model(root, number) for number in range(options.endpoints)]
        with (
            serving(root / "one", models[:1], options.workers) as one,
            serving(root / "many", models, options.workers) as many,
        ):
            rounds = [
                [measure(one.port, one.names, options.requests)]
                + [
                    measure(many.port, names, options.requests)
                    for names in (many.names[-1:], many.names)
                ]
                for _ in range(options.rounds)
            ]
            report(one, many, np.array(rounds), change(many, models[0]))


def make_model(root: Path, number: int) -> Path:
    """Return the model's folder: the first is created, and the others are copies of its
    files.
    """
    template = root / "models" / "m0"
    folder = root / "models" / f"m{number}"
    if number:
        return Path(shutil.copytree(template, folder))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, COLUMNS)).astype(np.float32)
    save_model(LogisticRegression().fit(x, x[:, 0] + x[:, 1] > 0), template, input_example=x[:5])
    return folder


@contextmanager
def serving(state_dir: Path, models: list[Path], workers: int) -> Iterator[Server]:
    names = [folder.name for folder in models]
    documents = [
        f"name: {folder.name}\nvariants: {{v: {{model: '{folder}'}}}}\n" for folder in models
    ]
    state_dir.mkdir()
    spec = state_dir / "endpoints.yaml"
    spec.write_text("---\n".join(documents))
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "serve",
        "--spec",
        str(spec),
        "-w",
        str(workers),
    ]
    command += ["--state-dir", str(state_dir / "state"), "-C", "server.model_control_mode=explicit"]
    began = time.monotonic()
    with (state_dir / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        state = wait_ready(process, state_dir)
        yield Server(process, state["port"], time.monotonic() - began, names)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait_ready(process: subprocess.Popen[bytes], state_dir: Path) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            state: dict[str, Any] = json.loads((state_dir / "state" / "server.json").read_text())
        except FileNotFoundError:
            state = {}
        if state.get("phase") == "serving":
            return state
        time.sleep(0.02)
    raise SystemExit((state_dir / "log").read_text()[-3000:])


def measure(port: int, names: list[str], requests: int) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds of one client that sends requests to these
    endpoints in turn.
    """
    body = json.dumps({"inputs": [[0.5] * COLUMNS]})
    paths = itertools.cycle([f"/endpoints/{name}/invocations" for name in names])
    connection = http.client.HTTPConnection("127.0.0.1", port)
    seconds = []
    for path in itertools.islice(paths, requests):
        began = time.perf_counter()
        connection.request("POST", path, body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        seconds.append(time.perf_counter() - began)
        assert answer.status == 200, path
    connection.close()
    return tuple(1000 * np.percentile(seconds, [50, 99]))


def change(server: Server, model: Path) -> dict[str, float]:
    """Return the seconds to load and to unload another endpoint, and to read /metrics,
    and the bytes of /metrics.
    """
    seconds = {}
    for action, body in (("load", {"parameters": {"model_uri": str(model)}}), ("unload", {})):
        seconds[action], _ = timed(
            server.port,
            "POST",
            f"/v2/repository/models/further/{action}",
            json.dumps(body),
        )
    seconds["metrics"], size = timed(server.port, "GET", "/metrics")
    return {**seconds, "metrics bytes": size}


def timed(port: int, method: str, path: str, body: str | None = None) -> tuple[float, int]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.perf_counter()
    connection.request(method, path, body, HEADERS)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content
    return time.perf_counter() - began, len(content)


def report(one: Server, many: Server, rounds: np.ndarray, changed: dict[str, float]) -> None:
    """Print the table; `rounds` is [rounds, 3 kinds of client, p50 and p99]."""
    ratios = np.median(rounds / rounds[:, :1], axis=0)
    medians = np.median(rounds, axis=0)
    (one_rss, one_uss), (many_rss, many_uss) = one.worker_mebibytes(), many.worker_mebibytes()
    count = len(many.names)
    print(f"| | 1 endpoint | {count} endpoints | {count}, requested in turn |")
    print("|---|---|---|---|")
    print(f"| start to ready | {one.start_seconds:.1f} s | {many.start_seconds:.1f} s | |")
    print(
        f"| CPU of the start, all processes | {one.start_cpu_seconds:.1f} s | "
        f"{many.start_cpu_seconds:.1f} s | |",
    )
    print(
        f"| memory of the server (PSS) | {one.mebibytes():.0f} MiB | {many.mebibytes():.0f} MiB | "
        "|",
    )
    print(f"| resident memory of a worker | {one_rss:.0f} MiB | {many_rss:.0f} MiB | |")
    each = 1024 * (many_uss - one_uss) / (count - 1)
    print(
        f"| unshared part | {one_uss:.0f} MiB | {many_uss:.0f} MiB ({each:.0f} KiB per model) | |",
    )
    for row, name in enumerate(("p50", "p99")):
        cells = [f"{medians[way, row]:.2f} ms ({ratios[way, row]:.2f}×)" for way in range(3)]
        print(f"| {name}, one client | {' | '.join(cells)} |")
    print(f"| load another endpoint | | {changed['load']:.2f} s | |")
    print(f"| unload it | | {changed['unload']:.2f} s | |")
    print(
        f"| /metrics | | {changed['metrics']:.2f} s, {changed['metrics bytes'] / 1024:.0f} KiB | |",
    )


if __name__ == "__main__":
    main()
