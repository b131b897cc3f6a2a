"""Three servers behind nginx, one of which is killed, with shared limits; and the
growth with endpoints, servers and rows.

    eval "$(shared/machine/s3.sh env)"
    .venv/bin/python -m benchmarks.scale \\
        [servers unlimited limits store registry redis log]

The stack is docker/compose.yaml as tests/stack runs it without Docker, with a third
server: a real nginx with docker/stack/nginx.conf, Redis, PostgreSQL for the store and
MLflow, and S3 for artifacts and the inference log.

servers    clients send requests through nginx while a server is killed (SIGKILL) and
           restarted, with and without nginx's retries: failed requests, latency, CPU
           seconds per million predictions
unlimited  the CPU seconds without a rate limit
limits     the number of requests that three servers admit with one shared rate limit
store      10,000 endpoints in PostgreSQL: adding, reading and listing them
registry   calls per second that an MLflow server answers, of the kind that agents make
redis      counts per second of one worker's rate limiter
log        bytes per row, and the time to read one hour
"""

import argparse
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import numpy as np
import psutil

from tests.stack.native import COMPOSE, NativeStack
from tests.support.services.postgresql import postgresql_server
from tests.support.services.redis_server import redis_server
from tests.support.waiting import answers

if TYPE_CHECKING:
    import pyarrow as pa

SERVERS = ("server-a", "server-b", "server-c")
BODY = json.dumps({"inputs": [[1.0, 2.0]]}).encode()
RATE = 1200


@dataclass
class Asked:
    """The results of clients: the number of responses by status (0: no response), and
    the seconds of each response.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status == 0 or status >= 500)


@contextmanager
def three_servers(folder: Path, **changed: str) -> Iterator[NativeStack]:
    """Run the core of the stack with a third server; `changed` replaces texts in its
    files.
    """
    bucket = f"onnxserve-{uuid.uuid4().hex[:12]}"
    lines = [f"    server server-b:{port} max_fails=1 fail_timeout=2s;" for port in (8080, 8081)]
    more = {line: line + line.replace("-b", "-c") for line in lines}
    stack = NativeStack(
        folder,
        outside={"http://minio:9000": os.environ["AWS_ENDPOINT_URL"]},
        changed={"s3://onnxserve/": f"s3://{bucket}/", **more, **changed},
    )
    stack.services["server-c"] = stack.services["server-b"]
    stack.addresses["server-c"] = f"{stack.addresses['server-b'].rpartition('.')[0]}.99"
    stack.secrets.mkdir()
    (stack.secrets / "s3_user").write_text(os.environ["AWS_ACCESS_KEY_ID"])
    (stack.secrets / "s3_password").write_text(os.environ["AWS_SECRET_ACCESS_KEY"])
    make = [
        sys.executable,
        str(COMPOSE.parent / "stack" / "make_secrets.py"),
        "--folder",
        str(stack.secrets),
    ]
    subprocess.run([*make, "--host", stack.addresses["nginx"]], check=True)
    password = (stack.secrets / "postgres_password").read_text()
    with postgresql_server(stack.addresses["postgres"], 5432, "onnxserve", password) as url:
        script = (
            "CREATE DATABASE onnxserve;\n"
            + (COMPOSE.parent / "stack" / "databases.sql").read_text()
        )
        fill = ["psql", "-qX", url.replace("+psycopg", ""), "-v", "ON_ERROR_STOP=1"]
        subprocess.run(fill, input=script, text=True, check=True)
        try:
            stack.start("redis")
            stack.start("mlflow")
            stack.wait_for("mlflow", lambda: answers(stack.url("mlflow", 5000, "/health")))
            stack.run("setup")
            for name in SERVERS:
                stack.start(name)
            for name in SERVERS:
                wait_ready(stack, name)
            start_nginx(stack)
            yield stack
        finally:
            stack.end()
            made = boto3.resource("s3").Bucket(bucket)
            if made.creation_date:
                made.objects.all().delete()
                made.delete()


def wait_ready(stack: NativeStack, name: str) -> None:
    stack.wait_for(name, lambda: answers(stack.url(name, 8080, "/ping")))


def start_nginx(stack: NativeStack) -> None:
    stack.start("nginx")
    stack.wait_for("nginx", lambda: ask_once(stack).failed == 0)


def ask_once(stack: NativeStack) -> Asked:
    asked = Asked()
    client(stack, time.monotonic(), asked, threading.Lock())
    return asked


def client(
    stack: NativeStack,
    until: float,
    asked: Asked,
    lock: threading.Lock,
    server: str = "",
) -> None:
    """Send requests through nginx, or to a server directly, sequentially on one
    connection and without retries.
    """
    key = (stack.secrets / "shop_key").read_text()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    trusted = ssl.create_default_context(cafile=str(stack.secrets / "tls.crt"))

    def connect() -> http.client.HTTPConnection:
        if server:
            return http.client.HTTPConnection(stack.addresses[server], 8080, timeout=30)
        return http.client.HTTPSConnection(
            stack.addresses["nginx"],
            8443,
            timeout=30,
            context=trusted,
        )

    connection = connect()
    first = True
    while first or time.monotonic() < until:
        first = False
        begun = time.perf_counter()
        try:
            connection.request("POST", "/invocations", BODY, headers)
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException):
            status = 0
            connection.close()
            connection = connect()
            time.sleep(0.01)
        with lock:
            asked.statuses[status] += 1
            asked.seconds.append(time.perf_counter() - begun)
    connection.close()


def ask(stack: NativeStack, seconds: float, clients: int = 8, server: str = "") -> Asked:
    asked = Asked()
    lock = threading.Lock()
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(clients):
            pool.submit(client, stack, until, asked, lock, server)
    return asked


def kill_under_load(stack: NativeStack, seconds: float) -> Asked:
    """Kill the second server after a third of the time, and restart it after two
    thirds.
    """

    def drill() -> None:
        time.sleep(seconds / 3)
        stack.kill("server-b")
        time.sleep(seconds / 3)
        stack.start("server-b")

    thread = threading.Thread(target=drill)
    thread.start()
    asked = ask(stack, seconds)
    thread.join()
    wait_ready(stack, "server-b")
    return asked


def cpu_seconds(stack: NativeStack, names: tuple[str, ...]) -> float:
    found = 0.0
    for name in names:
        top = psutil.Process(stack.processes[name].pid)
        found += sum(sum(one.cpu_times()[:2]) for one in [top, *top.children(recursive=True)])
    return found


def servers(seconds: float) -> Asked:
    """Return the results of clients while a server was killed, with nginx's retries."""
    unlimited = {"rate_limit: 20000/minute": "rate_limit: 10000000/minute"}
    with (
        tempfile.TemporaryDirectory(prefix="scale-") as folder,
        three_servers(Path(folder), **unlimited) as stack,
    ):
        print(f"three servers, none killed: {cost(stack, seconds)}")
        retried = kill_under_load(stack, 3 * seconds)
        print(f"one server killed, nginx retries another server: {shown(retried, 3 * seconds)}")
        stack.kill("nginx")
        stack.changed |= {
            "proxy_next_upstream error timeout http_503": "proxy_next_upstream off; #",
        }
        start_nginx(stack)
        plain = kill_under_load(stack, 3 * seconds)
        print(f"one server killed, no retry: {shown(plain, 3 * seconds)}", flush=True)
    return retried


def unlimited(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        changed = {"  rate_limit: 20000/minute\n": ""}
        with three_servers(Path(folder), **changed) as stack:
            print(f"the same without a rate limit: {cost(stack, seconds)}", flush=True)


def cost(stack: NativeStack, seconds: float) -> str:
    """Return the results of clients while all servers run, and the CPU of a million
    such requests.
    """
    ask(stack, 2)
    before = {name: cpu_seconds(stack, names) for name, names in _COSTS.items()}
    quiet = ask(stack, seconds)
    million = 1e6 / len(quiet.seconds)
    spent = {
        name: (cpu_seconds(stack, names) - before[name]) * million for name, names in _COSTS.items()
    }
    told = ", ".join(f"{name} {value:,.0f} s" for name, value in spent.items())
    return f"{shown(quiet, seconds)}; CPU for a million one-row requests: {told}"


_COSTS = {"servers": SERVERS, "nginx": ("nginx",), "redis": ("redis",)}


def shown(asked: Asked, seconds: float) -> str:
    middle, late, last = np.percentile(asked.seconds, [50, 99, 100]) * 1000
    return (
        f"{asked.failed} of {len(asked.seconds):,} requests failed, "
        f"{len(asked.seconds) / seconds:,.0f}/s, p50 {middle:.1f} ms, p99 {late:.1f} ms, longest "
        f"{last:,.0f} ms"
    )


def limits() -> int:
    """Return the number of requests that three servers have admitted within one period
    of the rate limit.
    """
    limited = {"rate_limit: 20000/minute": f"rate_limit: {RATE}/minute"}
    with (
        tempfile.TemporaryDirectory(prefix="scale-") as folder,
        three_servers(Path(folder), **limited) as stack,
    ):
        begun = time.monotonic()
        total = Counter[int]()
        while sum(total.values()) < 2 * RATE and time.monotonic() - begun < 30:
            for name in SERVERS:
                total += ask(stack, 0.5, 2, name).statuses
        print(
            f"{RATE} requests per minute for one key, {sum(total.values()):,} sent to three "
            f"servers in {time.monotonic() - begun:.0f} s: {total[200]:,} admitted, "
            f"{total[429]:,} refused",
            flush=True,
        )
        return total[200]


def store(count: int = 10_000) -> None:
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
    """Call MLflow like an agent that polls: one call per model and poll."""
    with (
        tempfile.TemporaryDirectory(prefix="scale-") as folder,
        three_servers(Path(folder)) as stack,
    ):
        password = (stack.secrets / "admin_password").read_text()
        url = stack.url(
            "mlflow",
            5000,
            "/api/2.0/mlflow/registered-models/alias?name=flights&alias=champion",
        )
        import requests

        def poll(until: float) -> int:
            session = requests.Session()
            count = 0
            session.auth = ("admin", password)
            while time.monotonic() < until:
                session.get(url, timeout=30).raise_for_status()
                count += 1
            return count

        until = time.monotonic() + seconds
        with ThreadPoolExecutor(8) as pool:
            rate = sum(pool.map(poll, [until] * 8)) / seconds
        print(
            f"MLflow with one worker answers {rate:,.0f} polls per second: with one poll every 2 "
            f"s, {rate * 2:,.0f} followed models times servers; at with one every 30 s, "
            f"{rate * 30:,.0f}",
            flush=True,
        )


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


def log(sizes: tuple[int, ...] = (1_000_000, 4_000_000)) -> None:
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
        "servers": lambda: servers(options.seconds),
        "unlimited": lambda: unlimited(options.seconds),
        "limits": limits,
        "store": store,
        "registry": lambda: registry(options.seconds),
        "redis": lambda: redis(options.seconds / 2),
        "log": log,
    }
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--seconds", type=float, default=8)
    options: argparse.Namespace = parser.parse_args()
    for name in options.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
