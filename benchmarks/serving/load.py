"""A load client with a closed loop (the next request follows the response) and an open loop (requests at fixed times).
The connections and the open loop are in `mlflow_deploy_plugin/sizing/load.py`.

The client never sleeps: the same server answers 6,800 requests/s of a sleeping client, and 9,200 of this client. Every
response is checked: its status is 200 and it contains the expected bytes.
"""

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import uvloop

from mlflow_deploy_plugin.sizing import load
from mlflow_deploy_plugin.sizing.load import Connection, Times, answer_length, connect, is_right, post, stay_awake

__all__ = ["Measured", "Target", "answer_length", "closed_loop", "open_loop", "post", "wrk_loop"]

_LEAST_ANSWERS = 5
_PATIENCE = 30.0


@dataclass(frozen=True)
class Target:
    """A request that is sent repeatedly.

    Attributes:
        raw: the complete request, head and body.
        expected: bytes that the body of every response must contain.
    """

    port: int
    raw: bytes
    expected: bytes


@dataclass(frozen=True)
class Measured:
    """The results of a run, with latencies in seconds. `requests` are the correct responses, and `wrong` all others."""

    requests: int
    seconds: float
    p50: float
    p99: float
    wrong: int

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def closed_loop(target: Target, connections: int, seconds: float, warm_up: float = 0.3) -> Measured:
    """Send the next request of every connection after its response; continue until there are some responses."""
    return uvloop.run(_closed_loop(target, connections, seconds, warm_up))


def open_loop(target: Target, connections: int, seconds: float, rate: float) -> Measured:
    """Send `rate` requests per second at equal intervals, independently of the server."""
    sent = load.open_loop(
        target.port, [target.raw], np.arange(int(seconds * rate)) / rate, connections, expected=target.expected
    )
    return _measured(sent.latencies, sent.wrong, seconds)


def wrk_loop(target: Target, connections: int, seconds: float) -> Measured:
    """Run a closed loop with wrk, a client in C that sleeps until a response arrives and checks the status, but not the
    body."""
    head, _, body = target.raw.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    method, path, _ = line.split(" ")
    script = [f"wrk.method = {json.dumps(method)}", f"wrk.body = {json.dumps(body.decode())}"]
    for field in fields:
        name, _, value = field.partition(": ")
        if name not in ("Host", "Content-Length"):
            script.append(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}")
    script.append(
        "done = function(s, l, r) io.write(string.format('figures %d %d %d %d %d', s.requests, s.duration, "
        "l:percentile(50), l:percentile(99), s.errors.status + s.errors.read + s.errors.write + s.errors.timeout)) end"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write("\n".join(script))
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", file.name]
        command.append(f"http://127.0.0.1:{target.port}{path}")
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests, duration, p50, p99, wrong = map(int, output.partition("figures ")[2].split())
    return Measured(requests - wrong, duration / 1e6, p50 / 1e6, p99 / 1e6, wrong)


async def _closed_loop(target: Target, count: int, seconds: float, warm_up: float) -> Measured:
    latencies: list[float] = []
    wrong = 0
    clock = time.perf_counter
    begin = last = clock() + warm_up
    end = begin + seconds

    def on_answer(connection: Connection, answer: bytes) -> None:
        nonlocal wrong, last
        now = clock()
        if begin <= now and (now < end or len(latencies) < _LEAST_ANSWERS):
            latencies.append(now - connection.begun)
            wrong += not is_right(answer, target.expected)
            last = now
        if now < end or len(latencies) < _LEAST_ANSWERS:
            connection.send(target.raw, now)

    connections = await connect(target.port, count, on_answer)
    stay_awake()
    for connection in connections:
        connection.send(target.raw, clock())
    while clock() < end or (len(latencies) < _LEAST_ANSWERS and clock() < end + _PATIENCE):
        await asyncio.sleep(0.05)
        if all(connection.is_closed for connection in connections):
            raise ConnectionError("the server has closed every connection")
    for connection in connections:
        connection.close()
    return _measured(latencies, wrong, last - begin)


def _measured(latencies: Sequence[float] | Times, wrong: int, seconds: float) -> Measured:
    if len(latencies) == 0:
        raise TimeoutError("no response was received")
    p50, p99 = np.percentile(latencies, [50, 99])
    return Measured(len(latencies) - wrong, seconds, float(p50), float(p99), wrong)
