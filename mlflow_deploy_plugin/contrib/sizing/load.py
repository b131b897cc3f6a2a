"""An HTTP client that sends requests at scheduled times, independently of the server's
answers (an open loop).

Latency counts from the scheduled time, so that a stalling server is charged for all
waiting requests. The client never sleeps, because waking a sleeping core of a virtual
machine costs the server tens of microseconds per answer.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_deploy_plugin.core.messages import one_line

if sys.platform != "win32":
    import uvloop

Times = npt.NDArray[np.float64]
_clock = time.perf_counter
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
    count = max(1, round(rate * seconds))
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, count))


def open_loop(port: int, requests: Sequence[bytes], times: Times) -> tuple[Times, str]:
    """Send the requests in turn to a server on this machine at `times` [N], in seconds
    after the start.

    Return the latencies [N] in seconds, and the status and body of the first answer
    with another status than 200, if any. Requests without an answer count with their
    waiting time.
    """
    return uvloop.run(_Client().measure(port, requests, times))


class _Client:
    """The connections to a server, and its answers."""

    def __init__(self) -> None:
        self.latencies = list[float]()
        self._idle = deque[_Connection]()
        self._sent = 0
        self._wrong = list[bytes]()

    async def measure(
        self, port: int, requests: Sequence[bytes], times: Times
    ) -> tuple[Times, str]:
        """Send the requests and wait for the answers. Return as `open_loop`."""

        def receive(connection: _Connection, answer: bytes) -> None:
            self.latencies.append(_clock() - connection.due)
            self._idle.append(connection)
            if not answer.startswith(b"HTTP/1.1 200"):
                self._wrong.append(answer)

        loop = asyncio.get_running_loop()
        for _ in range(_CONNECTIONS):
            _, connection = await loop.create_connection(
                lambda: _Connection(receive), "127.0.0.1", port
            )
            self._idle.append(connection)
        connections = [*self._idle]
        due = (times + _clock()).tolist()
        await self.send(requests, due)
        end = _clock() + _ANSWER_SECONDS
        while len(self.latencies) < self._sent and _clock() < end:
            await asyncio.sleep(0)
        error = self.error()
        self.latencies += [_clock() - scheduled for scheduled in due[len(self.latencies) :]]
        for connection in connections:
            connection.transport.close()
        return np.array(self.latencies), error

    async def send(self, requests: Sequence[bytes], due: Sequence[float]) -> None:
        """Send a request at each time, or as soon as a connection is idle."""
        while self._sent < len(due) and (now := _clock()) < due[-1] + _QUEUE_SECONDS:
            while self._sent < len(due) and self._idle and due[self._sent] <= now:
                connection = self._idle.popleft()
                connection.due = due[self._sent]
                connection.transport.write(requests[self._sent % len(requests)])
                self._sent += 1
            await asyncio.sleep(0)

    def error(self) -> str:
        """Return the first wrong or missing answer; empty if all answers are right."""
        if self._wrong:
            head, _, body = self._wrong[0].decode(errors="replace").partition("\r\n\r\n")
            return f"{head.split(' ', 2)[1]}: {one_line(body, 300)}"
        if len(self.latencies) < self._sent:
            return f"nothing within {_ANSWER_SECONDS:g} s"
        return ""


def tail_latency(latencies: Times) -> float:
    """Return the 99th percentile of the latencies [N]."""
    return float(np.quantile(latencies, 0.99, method="higher"))
