"""An open loop that keeps every response: when it was due, its latency, its version,
and if its value is that version's. It runs in a separate process, so that the process
that changes the server does not slow it down.

As in `contrib/sizing/load.py`, latency counts from the scheduled time of a request.
Unlike there, the client sleeps between requests, so that the servers can use the cores.
A lost connection counts as a failed response.
"""

import asyncio
import multiprocessing
import re
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Self

import numpy as np
import uvloop

from .load import Connection, connect

FAILED = -1
MIXED = -2
CONNECTIONS = 32
_VERSION = re.compile(rb"\r\nx-model-version: *(\d+)\r\n", re.IGNORECASE)
_PATIENCE = 30.0
"""Seconds after the last request, after which missing responses count as failed."""
_TICK_SECONDS = 0.001


@dataclass(frozen=True)
class Answers:
    """All responses, by the time at which they were due (seconds of the monotonic
    clock).

    Attributes:
        version: the number of the version that gave the response; FAILED: no response,
            or not 200; MIXED: its value belongs to another version.
    """

    due: np.ndarray
    latency: np.ndarray
    version: np.ndarray

    @property
    def failed(self) -> int:
        return int((self.version == FAILED).sum())

    @property
    def mixed(self) -> int:
        return int((self.version == MIXED).sum())

    def within(self, begin: float, end: float) -> Self:
        return self.only((self.due >= begin) & (self.due < end))

    def only(self, chosen: np.ndarray) -> Self:
        return type(self)(self.due[chosen], self.latency[chosen], self.version[chosen])


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
        arguments = (port, raw, dict(values), rate, str(file), self._begun, self._ended)
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
        rows = np.load(self._file)
        return Answers(rows[0], rows[1], rows[2].astype(int))


class _Client:
    def __init__(self, port: int, raw: bytes, values: Mapping[str, bytes]) -> None:
        self._port = port
        self._raw = raw
        self._values = {version.encode(): value for version, value in values.items()}
        self.kept: list[tuple[float, float, int]] = []
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()

    def judge(self, answer: bytes) -> int:
        version = _VERSION.search(answer)
        if not answer.startswith(b"HTTP/1.1 200") or version is None:
            return FAILED
        value = self._values.get(version[1])
        if value is not None and value in answer:
            return int(version[1])
        return MIXED

    def receive(self, connection: Connection, answer: bytes) -> None:
        now = time.monotonic()
        self.kept.append((connection.begun, now - connection.begun, self.judge(answer)))
        if not connection.is_closed:
            self._idle.append(connection)
            self.send()

    async def run(self, rate: float, begun: Event, ended: Event) -> list[tuple[float, float, int]]:
        connections: list[Connection] = []
        sent = 0
        begin = time.monotonic()
        while not ended.is_set():
            connections = [one for one in connections if not one.is_closed]
            with suppress(OSError):  # No server listens.
                while len(connections) < CONNECTIONS:
                    connections.append(await connect(self._port, self._raw, self.receive))
                    self._idle.append(connections[-1])
            if not begun.is_set():
                begun.set()
                begin = time.monotonic()
            while begin + sent / rate <= time.monotonic():
                self._waiting.append(begin + sent / rate)
                sent += 1
            self.send()
            await asyncio.sleep(_TICK_SECONDS)
        last = time.monotonic()
        while len(self.kept) < sent and time.monotonic() < last + _PATIENCE:
            self.send()
            await asyncio.sleep(_TICK_SECONDS)
        for connection in connections:
            connection.close()
        answered = {due for due, _, _ in self.kept}
        missing = {begin + number / rate for number in range(sent)} - answered
        return [*self.kept, *((due, _PATIENCE, FAILED) for due in missing)]

    def send(self) -> None:
        """Send the waiting requests on idle connections."""
        while self._waiting and self._idle:
            connection = self._idle.popleft()
            if not connection.is_closed:
                connection.send(self._waiting.popleft())


def _record(
    port: int,
    raw: bytes,
    values: dict[str, bytes],
    rate: float,
    file: str,
    begun: Event,
    ended: Event,
) -> None:
    kept = uvloop.run(_Client(port, raw, values).run(rate, begun, ended))
    np.save(file, np.array(kept, dtype=np.float64).reshape(-1, 3).T)
