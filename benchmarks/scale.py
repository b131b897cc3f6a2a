"""Measure what grows with endpoints, servers and rows: the limits in docs/operate.md.

    .venv/bin/python -m benchmarks.scale [store registry redis judging]

store      10,000 endpoints in PostgreSQL: adding, reading and listing them
registry   calls per second that an MLflow server answers, of the kind that agents make
redis      counts per second of one worker's rate limiter
judging    memory and CPU time of the processes that judge a window and log its report

`store` needs the programs of PostgreSQL, and `redis` needs the program redis-server.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import requests

from tests.support.inference_log import ENDPOINT, LogWriter, event_table
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.postgresql import postgresql_server
from tests.support.services.redis_server import redis_server


def store(count: int) -> None:
    from mlflow_deploy_plugin.core.spec.document import load_specs
    from mlflow_deploy_plugin.core.store.database import open_store

    (spec,) = load_specs("name: e\nvariants: {v: {model: models:/flights@champion}}\n")
    with postgresql_server() as url, closing(open_store(url)) as opened:
        begun = time.perf_counter()
        for number in range(count):
            opened.add_endpoint("onnxserve", spec.model_copy(update={"name": f"e{number}"}))
        added = time.perf_counter() - begun
        begun = time.perf_counter()
        for number in range(0, count, count // 200):
            opened.endpoint(f"e{number}")
        one = (time.perf_counter() - begun) / 200
        begun = time.perf_counter()
        found = len(opened.endpoints())
        listed = time.perf_counter() - begun
        print(
            f"store in PostgreSQL with {found:,} endpoints: {added / count * 1000:.1f} ms to add "
            f"an endpoint, {one * 1000:.1f} ms to read an endpoint, {listed:.2f} s to read all",
            flush=True,
        )


def registry(seconds: float) -> None:
    """Call MLflow like agents that poll: one call per model and poll."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        server = MlflowServer(Path(folder), app="onnxserve", options=("--workers", "1"))
        server.start()
        api = f"{server.url}/api/2.0/mlflow/registered-models"
        requests.post(f"{api}/create", json={"name": "flights"}, timeout=30).raise_for_status()

        def poll(until: float) -> int:
            session = requests.Session()
            count = 0
            while time.monotonic() < until:
                session.get(f"{api}/get?name=flights", timeout=30).raise_for_status()
                count += 1
            return count

        until = time.monotonic() + seconds
        with ThreadPoolExecutor(8) as pool:
            rate = sum(pool.map(poll, [until] * 8)) / seconds
        server.kill()
        print(f"MLflow with one worker answers {rate:,.0f} polls per second", flush=True)


def redis(seconds: float) -> None:
    from mlflow_deploy_plugin.serve.inference.limits import RedisRates, open_rate_limiter

    with tempfile.TemporaryDirectory(prefix="scale-") as folder, redis_server(Path(folder)) as url:
        limiter = open_rate_limiter("1000000/second", RedisRates(url))
        count = 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # A busy client would be counted for many requests at once.
            limiter(b"client %d" % count)
            count += 1
        print(
            f"Redis counts {count / seconds:,.0f} requests per second for one thread of one worker",
            flush=True,
        )


def judging(windows: int) -> None:
    """Judge a day of 460 rows and 14 columns several times. The reference has 90
    days.
    """
    from mlflow_deploy_plugin.core.processes.worker import Worker
    from mlflow_deploy_plugin.core.settings import Settings
    from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
    from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
    from mlflow_deploy_plugin.watch.monitors import evaluation
    from mlflow_deploy_plugin.watch.result import WindowRequest

    random = np.random.default_rng(0)

    def rows(first: datetime, days: int) -> dict[str, object]:
        times = [first + timedelta(days=row / 460) for row in range(460 * days)]
        return {f"x{n}": random.normal(size=len(times)) for n in range(14)} | {"_event_time": times}

    def show(name: str, worker: Worker) -> None:
        pid = worker.call(os.getpid, seconds=60)
        status = Path(f"/proc/{pid}/status").read_text().split()
        peak = int(status[status.index("VmHWM:") + 1]) * 1024
        used = sum(psutil.Process(pid).cpu_times()[:2])
        figures = f"{peak / 1e6:.0f} MB, {used / windows:.1f} s CPU per window"
        print(f"the process that {name}: {figures}", flush=True)
        worker.end()

    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        root = Path(folder)
        day = datetime(2026, 4, 1, tzinfo=UTC)
        reference = root / "reference.parquet"
        pq.write_table(event_table(rows(day - timedelta(days=90), 90)), reference)
        LogWriter(root / "log").write(rows(day, 1))
        server = MlflowServer(root, options=("--workers", "1"))
        server.start()
        os.environ["MLFLOW_TRACKING_URI"] = server.url
        spec = MonitorSpec(reference=f"dataset:{reference}")
        settings = Settings(home=root, log_uri=str(root / "log"))
        judges = evaluation.judging_worker()
        reports = evaluation.judging_worker()
        for revision in range(1, windows + 1):
            window = parse_window("2026-04-01/1d")
            request = WindowRequest(ENDPOINT, "daily", spec, window, revision, settings)
            result = judges.call(evaluation.judge_window, request, seconds=600)
            assert result.state == "no drift", result.reason
            reports.call(evaluation.log_report, request, result, seconds=600)
        show("judges", judges)
        show("logs reports", reports)
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts: dict[str, Callable[[], object]] = {
        "store": lambda: store(options.endpoints),
        "registry": lambda: registry(options.seconds),
        "redis": lambda: redis(options.seconds / 2),
        "judging": lambda: judging(3),
    }
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--endpoints", type=int, default=10_000)
    options: argparse.Namespace = parser.parse_args()
    for name in options.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
