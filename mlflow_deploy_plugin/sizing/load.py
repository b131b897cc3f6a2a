"""An HTTP client that sends requests at scheduled times, independently of the server's answers (an open loop).

Latency counts from the scheduled time, so that a server that stalls is charged for all waiting requests (Gil Tene's
"coordinated omission"). The client needs a core and never sleeps: waking a sleeping core of a virtual machine costs the
server tens of microseconds per answer.
"""

import asyncio
import gc
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

Times = npt.NDArray[np.float64]
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Sent:
    """The answers to requests.

    Attributes:
        latencies: [answers] seconds from the scheduled time of a request to its answer.
        wrong: the number of wrong and missing answers; `wrong_answer` is the first wrong answer, with its head.
    """

    latencies: Times
    wrong: int
    wrong_answer: bytes

    @property
    def p99(self) -> float:
        """The 99th percentile of the latencies in seconds; infinity without answers."""
        return float(np.quantile(self.latencies, 0.99, method="higher")) if len(self.latencies) else math.inf


class Connection(asyncio.Protocol):
    """A connection with one request in flight; `on_answer(connection, answer)` is called for each answer. `begun` is
    the time from which the latency of the request counts."""

    def __init__(self, on_answer: Callable[["Connection", bytes], None]) -> None:
        self._on_answer = on_answer
        self._answer = bytearray()
        self._transport: Any = None
        self.begun = 0.0
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes, begun: float) -> None:
        self.begun = begun
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        length = answer_length(self._answer)
        if length is not None and len(self._answer) >= length:
            answer = bytes(self._answer[:length])
            del self._answer[:length]
            self._on_answer(self, answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True

    def close(self) -> None:
        self._transport.close()


def answer_length(answer: bytes | bytearray) -> int | None:
    """Return the length of the first response in the bytes; None: its head or its chunks are not complete yet."""
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


def is_right(answer: bytes, expected: bytes = b"") -> bool:
    """Return True if the status of an answer is 200 and its body contains `expected`."""
    return answer.startswith(b"HTTP/1.1 200") and expected in answer


def post(path: str, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    """Return the bytes of a request that keeps its connection. Names of headers have underscores for hyphens."""
    fields = {"Host": "127.0.0.1", "Content-Type": content_type, "Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def connect(port: int, count: int, on_answer: Callable[[Connection, bytes], None]) -> list[Connection]:
    """Open connections to a server on this machine."""
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Connection(on_answer), "127.0.0.1", port) for _ in range(count)]
    return [connection for _, connection in opened]


def stay_awake() -> None:
    """Let the running loop poll for answers until it ends, without ever waiting."""
    asyncio.get_running_loop().call_soon(stay_awake)


def random_times(rate: float, seconds: float, seed: int) -> Times:
    """Return the sorted times of independent callers (a Poisson process) in `seconds`: `rate` per second, at least one
    time."""
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, max(1, round(rate * seconds))))


def open_loop(
    port: int,
    requests: Sequence[bytes],
    times: Times,
    connections: int,
    expected: bytes = b"",
    p99: float = math.inf,
    cores: Collection[int] = (),
) -> Sent:
    """Send the requests in turn at `times` [N], in seconds after the start. Stop early if more than 1 % of N answers
    take longer than `p99` seconds. Pin this process to `cores`, if any. Raises ConnectionError without a server."""
    if cores:
        os.sched_setaffinity(0, cores)
    gc.freeze()  # The garbage collector would otherwise visit all imported modules during the load.
    return uvloop.run(_open_loop(port, requests, times, connections, expected, p99))


async def _open_loop(
    port: int, requests: Sequence[bytes], times: Times, count: int, expected: bytes, p99: float
) -> Sent:
    clock, latencies, wrong, slow = time.perf_counter, list[float](), list[bytes](), 0
    idle, waiting = deque[Connection](), deque[tuple[bytes, float]]()

    def on_answer(connection: Connection, answer: bytes) -> None:
        nonlocal slow
        latencies.append(clock() - connection.begun)
        slow += latencies[-1] > p99
        if not is_right(answer, expected):
            wrong.append(answer)
        if waiting:
            connection.send(*waiting.popleft())
        else:
            idle.append(connection)

    connections = await connect(port, count, on_answer)
    idle.extend(connections)
    sent, due = 0, (times + clock()).tolist()
    most_slow = math.ceil(len(due) / 100)
    while sent < len(due) and slow <= most_slow:
        now = clock()
        while sent < len(due) and due[sent] <= now:
            waiting.append((requests[sent % len(requests)], due[sent]))
            sent += 1
        while waiting and idle:
            idle.popleft().send(*waiting.popleft())
        await asyncio.sleep(0)
    stay_awake()
    give_up = clock() + _PATIENCE_SECONDS
    while len(latencies) < sent and slow <= most_slow and clock() < give_up:
        await asyncio.sleep(0.01)
    missing = sent - len(latencies) if slow <= most_slow else 0
    for connection in connections:
        connection.close()
    return Sent(np.array(latencies), len(wrong) + missing, wrong[0] if wrong else b"")
