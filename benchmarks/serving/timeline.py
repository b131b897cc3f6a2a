"""An open loop that keeps every response: when it was due, its latency, and its version
or failure.

Latency counts from the scheduled time of a request, as in MLPerf Inference and in
`contrib/sizing/load.py`: neither a late client nor a full pool of connections hides a
queue (coordinated omission). A lost connection counts as a failed response. `OpenLoop`
runs in a separate process, so that the process that changes the server does not slow it
down; `arrivals` runs the client in its own process.
"""

import asyncio
import itertools
import multiprocessing
import re
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import uvloop

from .load import Connection, connect

FAILED = -1
MIXED = -2
CONNECTIONS = 64
_VERSION = re.compile(rb"\r\nx-model-version: *(\d+)\r\n", re.IGNORECASE)
_PATIENCE = 30.0
"""Seconds after the last request, after which missing responses count as failed."""
_TICK_SECONDS = 0.001


@dataclass(frozen=True)
class Answers:
    """All responses [N], by the time at which they were due (seconds of the monotonic
    clock).

    Attributes:
        version: the number of the version that gave the response; FAILED: no response,
            or not 200; MIXED: its value belongs to another version.
        lag: the seconds from the time at which the client could send the request (it
            was due, and a connection was idle) until it sent it.
    """

    due: np.ndarray
    latency: np.ndarray
    version: np.ndarray
    lag: np.ndarray

    @classmethod
    def of(cls, kept: np.ndarray) -> Self:
        """Return the responses that `Client.run` kept: [N, 4] floats."""
        due, latency, version, lag = kept.T
        return cls(due, latency, version.astype(int), lag)

    @property
    def failed(self) -> int:
        return int((self.version == FAILED).sum())

    @property
    def mixed(self) -> int:
        return int((self.version == MIXED).sum())

    def within(self, begin: float, end: float) -> Self:
        return self.only((self.due >= begin) & (self.due < end))

    def only(self, chosen: np.ndarray) -> Self:
        return type(self).of(np.stack([*vars(self).values()], axis=1)[chosen])


class OpenLoop:
    """Sends `rate` requests per second from `__enter__`, which waits for its process;
    `stop` returns the responses.

    Args:
        raw: the complete request.
        values: version → bytes that only this version's response contains.
    """

    def __init__(
        self, port: int, raw: bytes, values: Mapping[str, bytes], rate: float, file: Path
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._begun = context.Event()
        self._ended = context.Event()
        self._file = file
        events = (self._begun.set, self._ended.is_set)
        arguments = (port, raw, dict(values), rate, str(file), *events)
        self._process = context.Process(target=_record, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._begun.wait(_PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._process.join()

    def stop(self) -> Answers:
        self.__exit__()
        return Answers.of(np.load(self._file))


class Client:
    """Sends a request at each scheduled time, or as soon as a connection is idle.

    Args:
        judge: returns the number of a response, e.g. its version or FAILED.
        tick: the client sleeps for so many seconds between its looks at the clock; 0:
            it never sleeps, because a timer would make it late.
    """

    def __init__(
        self, port: int, raw: bytes, judge: Callable[[bytes], int], tick: float = _TICK_SECONDS
    ) -> None:
        self._port = port
        self._raw = raw
        self._judge = judge
        self._tick = tick
        self._kept = array("d")  # Tuples would make the garbage collector stop the client.
        self._connections: list[Connection] = []
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._is_connected = False

    def _keep(self, due: float, latency: float, version: int, lag: float) -> None:
        self._kept.extend((due, latency, version, lag))

    def _receive(self, connection: Connection, answer: bytes) -> None:
        now = time.monotonic()
        version = self._judge(answer)
        self._keep(connection.begun, now - connection.begun, version, connection.lag)
        if connection.is_closed:
            self._is_connected = False
        else:
            connection.freed = now
            self._idle.append(connection)
            self._send()

    async def run(
        self,
        offsets: Iterable[float],
        begun: Callable[[], object] = lambda: None,
        is_ended: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """Send requests at `offsets`, in seconds after the start, until there are none
        or `is_ended`. Return [N, 4] floats for `Answers.of`.

        Args:
            begun: is called when the connections are open.
        """
        await self._connect()
        begun()
        begin = time.monotonic()
        for offset in offsets:
            while time.monotonic() < begin + offset and not is_ended():
                await self._look()
            if is_ended():
                break
            self._waiting.append(begin + offset)
            self._send()
        last = time.monotonic()
        while self._unanswered() and time.monotonic() < last + _PATIENCE:
            await self._look()
        for due in self._unanswered():
            self._keep(due, _PATIENCE, FAILED, 0.0)
        for connection in self._connections:
            connection.close()
        return np.frombuffer(self._kept).reshape(-1, 4)

    async def _look(self) -> None:
        """Send the waiting requests, and receive responses."""
        if not self._is_connected:
            await self._connect()
        self._send()
        await asyncio.sleep(self._tick)

    async def _connect(self) -> None:
        self._connections = [one for one in self._connections if not one.is_closed]
        with suppress(OSError):  # No server listens.
            while len(self._connections) < CONNECTIONS:
                connection = await connect(self._port, [self._raw], self._receive)
                self._connections.append(connection)
                self._idle.append(connection)
            self._is_connected = True

    def _send(self) -> None:
        """Send the waiting requests on idle connections, the last used first, as the
        pools of HTTP clients do: servers close those that are idle for long.
        """
        while self._waiting and self._idle:
            connection = self._idle.pop()
            if connection.is_closed:
                self._is_connected = False
            else:
                due = self._waiting.popleft()
                connection.lag = time.monotonic() - max(due, connection.freed)
                connection.send(due)

    def _unanswered(self) -> list[float]:
        sent = [one.begun for one in self._connections if one.waits]
        return [*sent, *self._waiting]


def _record(
    port: int,
    raw: bytes,
    values: dict[str, bytes],
    rate: float,
    file: str,
    begun: Callable[[], object],
    is_ended: Callable[[], bool],
) -> None:
    known = {version.encode(): value for version, value in values.items()}

    def judge(answer: bytes) -> int:
        version = _VERSION.search(answer)
        if not answer.startswith(b"HTTP/1.1 200") or version is None:
            return FAILED
        value = known.get(version[1])
        if value is not None and value in answer:
            return int(version[1])
        return MIXED

    offsets = (number / rate for number in itertools.count())
    np.save(file, uvloop.run(Client(port, raw, judge).run(offsets, begun, is_ended)))
