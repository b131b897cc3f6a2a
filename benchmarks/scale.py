"""Measure what grows with endpoints, servers and rows: the limits in docs/operate.md.

    .venv/bin/python -m benchmarks.scale [store registry redis log]

store      10,000 endpoints in PostgreSQL: adding, reading and listing them
registry   calls per second that an MLflow server answers, of the kind that agents make
redis      counts per second of one worker's rate limiter
log        bytes per row, and the time to read one hour

`store` needs the programs of PostgreSQL, and `redis` those of Redis.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import requests

from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.postgresql import postgresql_server
from tests.support.services.redis_server import redis_server

if TYPE_CHECKING:
    import pyarrow as pa


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


def log(sizes: tuple[int, ...] = (1_000_000,)) -> None:
    """Write rows of 14 columns like an agent: a file per ten minutes of two workers."""
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            size = write_log(folder, rows)
            found, seconds = read_hour(folder)
            print(
                f"log of {rows:,} rows: {size / rows:.0f} bytes per row, one hour of "
                f"{found:,} rows read in {seconds * 1000:.0f} ms",
                flush=True,
            )


def write_log(folder: str, rows: int, per_file: int = 25_000) -> int:
    """Return the bytes of the written log."""
    from mlflow_deploy_plugin.serve.inference_log.storage import encode_parquet

    rng = np.random.default_rng(0)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    size = 0
    for number in range(rows // per_file):
        moment = start + timedelta(minutes=30 * number)
        day = Path(folder, "endpoint=e", f"date={moment:%Y-%m-%d}")
        path = day / f"hour={moment:%H}" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = encode_parquet(log_table(rng, number, moment, per_file))
        path.write_bytes(content)
        size += content.size
    return size


def log_table(rng: np.random.Generator, number: int, moment: datetime, rows: int) -> "pa.Table":
    """Return the table of the file `number`, whose rows arrive in the half hour from
    `moment` on.
    """
    import pyarrow as pa

    times = [moment + row * timedelta(microseconds=1_800_000_000 // rows) for row in range(rows)]
    columns = {f"x{column}": rng.normal(size=rows) for column in range(12)}
    return pa.table(
        {
            **columns,
            "carrier": rng.choice(["AA", "UA", "DL"], rows),
            "origin": rng.choice(["JFK", "EWR"], rows),
            "prediction": rng.integers(0, 2, rows),
            "_event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "_received_time": pa.array(times, pa.timestamp("us", "UTC")),
            "_prediction_id": [f"{number:08x}{row:08x}" for row in range(rows)],
            "_row": pa.array(np.zeros(rows), pa.int32()),
            "_model": ["flights"] * rows,
            "_version": ["3"] * rows,
            "_variant": ["champion"] * rows,
            "_shadow": [False] * rows,
            "_segment": [f"s{number}"] * rows,
            "_offset": np.arange(rows),
        },
    )


def read_hour(folder: str) -> tuple[int, float]:
    """Return the number of rows of an hour, and the median seconds of reading them."""
    from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
    from mlflow_deploy_plugin.serve.inference_log.windows import parse_window

    opened = open_log(folder)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        hour = opened.read("e", parse_window("2026-01-01T03:00/1h"))
        seconds.append(time.perf_counter() - begun)
    assert hour is not None
    return hour.table.num_rows, float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts: dict[str, Callable[[], object]] = {
        "store": lambda: store(options.endpoints),
        "registry": lambda: registry(options.seconds),
        "redis": lambda: redis(options.seconds / 2),
        "log": log,
    }
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--endpoints", type=int, default=10_000)
    options: argparse.Namespace = parser.parse_args()
    for name in options.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
