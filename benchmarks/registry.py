"""Measure a server of all registered models: start, hot and cold requests, and memory.

    # 1,000 models; some minutes on two cores
    .venv/bin/python -m benchmarks.registry
    .venv/bin/python -m benchmarks.registry --models 9000
    # benchmarks/replicas.py: four replicas behind nginx; about 20 minutes
    .venv/bin/python -m benchmarks.registry --replicas 4 --models 10000 --clients 4

The models are copies of three kinds: a logistic regression, a random forest and
gradient boosting over 30 columns, each version with its own run through fetch,
verification and load. `server.model_memory` is a tenth of the estimated memory of all
models. Clients choose models by Zipf's law. The first request for a model fetches the
version from MLflow's server. Of the later requests, the k slowest loaded a model again,
for k further loads in the worker's log. A server of one model is measured next to the
server, in alternating rounds.
"""

import argparse
import http.client
import os
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from sklearn.base import ClassifierMixin
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from benchmarks.replicas import BODY, COLUMNS, HEADERS, report_replicas
from benchmarks.serving.servers import Server, free_port, running
from mlflow_deploy_plugin import save_model
from mlflow_deploy_plugin.core.statedir.models import WantedVariant
from mlflow_deploy_plugin.serve.models.lazy_models import estimated_bytes
from tests.support.services.mlflow_server import MlflowServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=5000, help="requests by Zipf's law")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of 1,000 hot requests")
    parser.add_argument("--replicas", type=int, default=1, help="more: measure them behind nginx")
    parser.add_argument("--seconds", type=int, default=180, help="of each part with --replicas")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxserve-registry-") as folder:
        root = Path(folder)
        os.environ["ONNXSERVE_HOME"] = str(root / "home")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
        kinds = make_kinds(root)
        versions = 1 if options.replicas == 1 else 2
        names = register(kinds, options.models, versions)
        sizes = [
            estimated_bytes(WantedVariant(model_uri="", model="", version="", folder=kind))
            for kind in kinds
        ]
        limit_mebibytes = int(sum(sizes) / len(sizes) * options.models / 10 / 2**20)
        os.environ.pop("MLFLOW_TRACKING_URI")
        mlflow = MlflowServer(root, app="onnxserve", options=("--workers", "1"))
        with mlflow.running():
            os.environ["MLFLOW_TRACKING_URI"] = mlflow.url
            if options.replicas > 1:
                report_replicas(root, names, limit_mebibytes, options)
                return
            every = ["--registry", "@champion", "-C", f"server.model_memory={limit_mebibytes}MiB"]
            with (
                serving(root / "one", [f"models:/{names[0]}@champion"]) as one,
                serving(root / "all", every) as server,
            ):
                report(one, server, names, limit_mebibytes, options)


def make_kinds(root: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, COLUMNS)).astype(np.float32)
    y = x[:, 0] + x[:, 1] > 0
    models: list[ClassifierMixin] = [
        LogisticRegression(),
        RandomForestClassifier(50, random_state=0),
        GradientBoostingClassifier(random_state=0),
    ]
    folders = []
    for number, model in enumerate(models):
        folders.append(root / "artifacts" / f"kind{number}")
        save_model(model.fit(x, y), folders[-1], input_example=x[:5])
    return folders


def register(kinds: list[Path], count: int, versions: int) -> list[str]:
    """Register the models with rows of MLflow's tables, because the API needs 0.1 s per
    model.
    """
    from mlflow import MlflowClient
    from mlflow.store.model_registry.dbmodels import models as tables
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    MlflowClient().search_registered_models()  # Create the tables.
    now = int(time.time() * 1000)
    names = [f"model-{number:05d}" for number in range(count)]
    times = {"creation_time": now, "last_updated_time": now}
    with Session(create_engine(os.environ["MLFLOW_TRACKING_URI"])) as session:
        session.add_all(tables.SqlRegisteredModel(name=name, **times) for name in names)
        session.flush()
        for number, name in enumerate(names):
            source = f"mlflow-artifacts:/{kinds[number % len(kinds)].name}"
            for version in range(1, versions + 1):
                session.add(
                    tables.SqlModelVersion(name=name, version=version, source=source, **times)
                )
            session.add(tables.SqlRegisteredModelAlias(name=name, alias="champion", version=1))
        session.commit()
    return names


@contextmanager
def serving(folder: Path, arguments: list[str]) -> Iterator[Server]:
    folder.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", *arguments]
    command += ["-p", str(port), "--state-dir", str(folder / "state")]
    question = urllib.request.Request(f"http://127.0.0.1:{port}/v2/health/ready")
    with running("onnxserve", command, port, folder / "log", {}, question, core=None) as server:
        yield server


def measure(
    server: Server, paths: list[str], seen: set[str]
) -> tuple[list[tuple[float, bool]], int]:
    """Return the seconds of each request of one client, with True for the first request
    for a path, and the number of failures.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    seconds = []
    failed = 0
    for path in paths:
        is_first = path not in seen
        seen.add(path)
        began = time.perf_counter()
        connection.request("POST", path, BODY, HEADERS)
        answer = connection.getresponse()
        content = answer.read()
        seconds.append((time.perf_counter() - began, is_first))
        if answer.status != 200:
            failed += 1
            print(path, answer.status, content, file=sys.stderr)
    connection.close()
    return seconds, failed


def loads(server: Server) -> int:
    return len(re.findall(r"loaded model-", server.log.read_text()))


def resident_mebibytes(server: Server) -> float:
    return max(worker.memory_info().rss for worker in server.workers()) / 2**20


def report(
    one: Server, server: Server, names: list[str], limit: int, options: argparse.Namespace
) -> None:
    """Measure both servers, and print the table."""
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, len(names) + 1)
    chosen = rng.choice(len(names), options.requests, p=weights / weights.sum())
    paths = [f"/models/{names[number]}/invocations" for number in chosen]
    began = time.monotonic()
    while "registered models are listed" not in server.log.read_text():
        time.sleep(0.1)
    listed_seconds = time.monotonic() - began
    measure(server, [f"/models/{names[-1]}/invocations"], set())  # Import ONNX Runtime.
    memory_before = resident_mebibytes(server)
    results: list[tuple[list[tuple[float, bool]], int]] = []
    seen: set[str] = set()
    peak = [memory_before]
    clients = [
        threading.Thread(
            target=lambda part=paths[client :: options.clients]: results.append(
                measure(server, part, seen)
            )
        )
        for client in range(options.clients)
    ]
    loads_before = loads(server)
    began = time.monotonic()
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        time.sleep(0.1)
        peak.append(resident_mebibytes(server))
    spent = time.monotonic() - began
    cold_count = loads(server) - loads_before
    seconds = [entry for part, _ in results for entry in part]
    first = [spent for spent, is_first in seconds if is_first]
    later = sorted(spent for spent, is_first in seconds if not is_first)
    kept = len(later) - max(0, cold_count - len(first))
    failed = sum(failures for _, failures in results)
    hot = f"/models/{names[0]}/invocations"
    rounds = []
    for _ in range(options.rounds):
        alone, _ = measure(one, ["/invocations"] * 1000, seen)
        among, failures = measure(server, [hot] * 1000, seen)
        failed += failures
        rounds.append([np.median([spent for spent, _ in part]) for part in (alone, among)])
    medians = np.median(rounds, axis=0)
    ratios = np.array(rounds)[:, 1] / np.array(rounds)[:, 0]
    load = os.getloadavg()
    print(f"load average {load[0]:.1f}, {psutil.cpu_count()} cores, {len(names):,} models")
    print("| | figure |\n|---|---|")
    print(f"| start to ready | {server.start_seconds:.1f} s (one model: {one.start_seconds:.1f}) |")
    print(f"| … until the first list is complete | {listed_seconds:.1f} s more |")
    print(f"| hot model, p50 of one client | {1e3 * medians[1]:.3f} ms |")
    print(f"| ratio to a server of one model | {np.median(ratios):.3f}× |")
    print(f"| requests by Zipf's law | {len(seconds):,} in {spent:.0f} s |")
    print(f"| failed | {failed} |")
    print(f"| loads | {cold_count} |")
    for kind, part in (
        ("fetch and load", first),
        ("load again", later[kept:]),
        ("in memory", later[:kept]),
    ):
        p50, p99 = np.percentile(part or [0], [50, 99])
        print(f"| {kind}: {len(part):,} requests, p50; p99 | {p50:.4f} s; {p99:.4f} s |")
    print(f"| server.model_memory | {limit} MiB |")
    grown = max(peak) - memory_before
    print(f"| peak growth of the worker's resident memory | {grown:.0f} MiB |")


if __name__ == "__main__":
    main()
