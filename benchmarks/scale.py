"""Measure what grows with endpoints, servers and rows: the limits in docs/operate.md.

    .venv/bin/python -m benchmarks.scale [store registry redis]

store      10,000 endpoints in PostgreSQL: adding, reading and listing them
registry   calls per second that an MLflow server answers, of the kind that agents make
redis      counts per second of one worker's rate limiter

`store` needs the programs of PostgreSQL, and `redis` needs the program redis-server.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import requests

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts: dict[str, Callable[[], object]] = {
        "store": lambda: store(options.endpoints),
        "registry": lambda: registry(options.seconds),
        "redis": lambda: redis(options.seconds / 2),
    }
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--endpoints", type=int, default=10_000)
    options: argparse.Namespace = parser.parse_args()
    for name in options.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
