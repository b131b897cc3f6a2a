"""A load client with a closed loop: the next request follows the response. `timeline`
has the client with an open loop.

It reads responses on uvloop without a library, so that one core sends requests faster
than any of the servers answers. It never sleeps: on a virtual machine, waking a
sleeping core costs the server tens of microseconds, which only servers that are slow
enough to keep the client busy avoid (the same server: 6,800 requests/s with a sleeping
client, 9,200 with this client). Every response is checked: its status is 200 and it
contains the expected bytes.
"""

import asyncio
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvloop

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
    """The results of a run, with latencies in seconds. `requests` are the correct
    responses, and `wrong` all others.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    wrong: int

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def post(path: str, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    """Return the bytes of a request that keeps its connection."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def closed_loop(target: Target, connections: int, seconds: float, warm_up: float = 0.3) -> Measured:
    """Send the next request of every connection after its response; continue until
    there are some responses.
    """
    return mixed_loop([target], connections, seconds, warm_up)


def mixed_loop(
    targets: Sequence[Target], connections: int, seconds: float, warm_up: float = 0.3
) -> Measured:
    """Run a closed loop whose connections send the requests in turn. A port has its
    share of the connections. Every response must contain the first target's bytes.
    """
    return uvloop.run(_closed_loop(targets, connections, seconds, warm_up))


def wrk_loop(target: Target, connections: int, seconds: float) -> Measured:
    """Run a closed loop with wrk, a client in C that sleeps until a response arrives
    and checks the status, but not the body.
    """
    head, _, body = target.raw.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    method, path, _ = line.split(" ")
    script = [f"wrk.method = {json.dumps(method)}", f"wrk.body = {json.dumps(body.decode())}"]
    for field in fields:
        name, _, value = field.partition(": ")
        if name not in ("Host", "Content-Length"):
            script.append(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}")
    script.append(
        "done = function(s, l, r) io.write(string.format('figures %d %d %d %d %d', s.requests, "
        "s.duration, l:percentile(50), l:percentile(99), s.errors.status + s.errors.read + "
        "s.errors.write + s.errors.timeout)) end",
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write("\n".join(script))
        file.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "-s",
            file.name,
        ]
        command.append(f"http://127.0.0.1:{target.port}{path}")
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests, duration, p50, p99, wrong = map(int, output.partition("figures ")[2].split())
    return Measured(requests - wrong, duration / 1e6, p50 / 1e6, p99 / 1e6, wrong)


class Connection(asyncio.Protocol):
    """A connection with one request in flight. `on_answer(connection, answer)` is
    called for each response, and with an empty answer if the connection is lost before.
    The client keeps the times at which its request began (`begun`) and its last one
    ended (`freed`), and the delay of its request (`lag`).
    """

    def __init__(
        self, raws: Sequence[bytes], on_answer: Callable[["Connection", bytes], None]
    ) -> None:
        self._raws = itertools.cycle(raws)
        self._on_answer = on_answer
        self._answer = bytearray()
        self._transport: Any = None
        self.waits = False
        self.begun = 0.0
        self.freed = 0.0
        self.lag = 0.0
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, begun: float) -> None:
        self.begun = begun
        self.waits = True
        self._transport.write(next(self._raws))

    def data_received(self, data: bytes) -> None:
        self._answer += data
        length = answer_length(self._answer)
        if length is not None and len(self._answer) >= length:
            answer = bytes(self._answer[:length])
            del self._answer[:length]
            self.waits = False
            self._on_answer(self, answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if self.waits:
            self._on_answer(self, b"")

    def close(self) -> None:
        self.waits = False
        self._transport.close()


def answer_length(answer: bytes | bytearray) -> int | None:
    """Return the length of the first response in the bytes; None: its head or its
    chunks are not complete yet.
    """
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(answer[:end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
    if b"transfer-encoding: chunked" not in head:
        raise ValueError(f"a response without a length: {head[:200]!r}")
    last = answer.find(b"0\r\n\r\n", end + 4)
    return None if last < 0 else last + 5


def _stay_awake() -> None:
    """Poll for responses until the loop ends, without ever waiting."""
    loop = asyncio.get_running_loop()

    def again() -> None:
        loop.call_soon(again)

    again()


async def connect(
    port: int, raws: Sequence[bytes], on_answer: Callable[[Connection, bytes], None]
) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(raws, on_answer), "127.0.0.1", port
    )
    return connection


async def _closed_loop(
    targets: Sequence[Target], count: int, seconds: float, warm_up: float
) -> Measured:
    latencies: list[float] = []
    wrong = 0
    expected = targets[0].expected
    clock = time.perf_counter
    begin = last = clock() + warm_up
    end = begin + seconds

    def on_answer(connection: Connection, answer: bytes) -> None:
        nonlocal wrong, last
        now = clock()
        if begin <= now and (now < end or len(latencies) < _LEAST_ANSWERS):
            latencies.append(now - connection.begun)
            wrong += not (answer.startswith(b"HTTP/1.1 200") and expected in answer)
            last = now
        if answer and (now < end or len(latencies) < _LEAST_ANSWERS):
            connection.send(now)

    connections = []
    ports = itertools.cycle({target.port: None for target in targets})
    for number, port in zip(range(count), ports, strict=False):
        raws = [target.raw for target in targets if target.port == port]
        begun = number % len(raws)
        connections.append(await connect(port, raws[begun:] + raws[:begun], on_answer))
    _stay_awake()
    for connection in connections:
        connection.send(clock())
    while clock() < end or (len(latencies) < _LEAST_ANSWERS and clock() < end + _PATIENCE):
        await asyncio.sleep(0.05)
        if all(connection.is_closed for connection in connections):
            raise ConnectionError("the server has closed every connection")
    for connection in connections:
        connection.close()
    return measured(latencies, wrong, last - begin)


def measured(latencies: Sequence[float] | np.ndarray, wrong: int, seconds: float) -> Measured:
    if len(latencies) == 0:
        raise TimeoutError("no response was received")
    p50, p99 = np.percentile(latencies, [50, 99])
    return Measured(len(latencies) - wrong, seconds, float(p50), float(p99), wrong)
