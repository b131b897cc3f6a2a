"""An HTTP client that sends requests at scheduled times, independently of the server's
answers (an open loop).

Latency counts from the scheduled time, so that a stalling server is charged for all
waiting requests. The client never sleeps, because waking a sleeping core of a virtual
machine costs the server tens of microseconds per answer.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from mlflow_deploy_plugin.core.messages import one_line

Times = npt.NDArray[np.float64]
_CONNECTIONS = 64
_QUEUE_SECONDS = 1.0
_ANSWER_SECONDS = 30.0
"""The time that requests may wait for a free connection after the last scheduled time,
and then for their answer.
"""


class _Connection(asyncio.Protocol):
    """A connection with one request in flight, which was due at the time `due`."""

    def __init__(self, on_answer: Callable[["_Connection", bytes], None]) -> None:
        self._on_answer = on_answer
        self._answer = b""
        self.due = 0.0

    def connection_made(self, transport: Any) -> None:  # not a transport of asyncio, but of uvloop
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length):
            answer = self._answer
            self._answer = b""
            self._on_answer(self, answer)


def post(path: str, body: bytes) -> bytes:
    """Return the bytes of a request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}"
    )
    return f"{head}\r\n\r\n".encode() + body


def random_times(rate: float, seconds: float, seed: int) -> Times:
    """Return the sorted times [N] of independent callers (a Poisson process): `rate`
    per second, at least one time.
    """
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, max(1, round(rate * seconds))))


def open_loop(port: int, requests: Sequence[bytes], times: Times) -> tuple[Times, str]:
    """Send the requests in turn to a server on this machine at `times` [N], in seconds
    after the start.

    Return the latencies [N] in seconds, and the status and body of the first answer
    with another status than 200, if any. Requests without an answer count with their
    waiting time.
    """
    return uvloop.run(_open_loop(port, requests, times))


async def _open_loop(port: int, requests: Sequence[bytes], times: Times) -> tuple[Times, str]:
    clock = time.perf_counter
    loop = asyncio.get_running_loop()
    latencies = list[float]()
    wrong = list[bytes]()
    idle = deque[_Connection]()

    def on_answer(connection: _Connection, answer: bytes) -> None:
        latencies.append(clock() - connection.due)
        idle.append(connection)
        if not answer.startswith(b"HTTP/1.1 200"):
            wrong.append(answer)

    for _ in range(_CONNECTIONS):
        idle.append(
            (await loop.create_connection(lambda: _Connection(on_answer), "127.0.0.1", port))[1],
        )
    connections = [*idle]
    sent = 0
    due = (times + clock()).tolist()
    while sent < len(due) and (now := clock()) < due[-1] + _QUEUE_SECONDS:
        while sent < len(due) and idle and due[sent] <= now:
            connection = idle.popleft()
            connection.due = due[sent]
            connection.transport.write(requests[sent % len(requests)])
            sent += 1
        await asyncio.sleep(0)
    end = clock() + _ANSWER_SECONDS
    while len(latencies) < sent and clock() < end:
        await asyncio.sleep(0)
    error = f"nothing within {_ANSWER_SECONDS:g} s" if len(latencies) < sent else ""
    if wrong:
        head, _, body = wrong[0].decode(errors="replace").partition("\r\n\r\n")
        error = f"{head.split(' ', 2)[1]}: {one_line(body, 300)}"
    latencies += [clock() - scheduled for scheduled in due[len(latencies) :]]
    for connection in connections:
        connection.transport.close()
    return np.array(latencies), error


def tail_latency(latencies: Times) -> float:
    """Return the 99th percentile of the latencies [N]."""
    return float(np.quantile(latencies, 0.99, method="higher"))
