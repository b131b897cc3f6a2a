"""An open loop that keeps every response: when it was due, its latency, its version,
and if its value is that version's. It runs in a separate process, so that the process
that changes the server does not slow it down.

As in `ship/sizing/load.py`, latency counts from the scheduled time of a request. Unlike
there, the client sleeps between requests, so that the servers can use the cores. A lost
connection counts as a failed response.
"""

import asyncio
import multiprocessing
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

import numpy as np
import uvloop

from .load import answer_length

FAILED = -1
MIXED = -2
_VERSION = re.compile(rb"\r\nx-model-version: *(\d+)\r\n", re.IGNORECASE)
_PATIENCE = 30.0
"""Seconds without any response after which all missing responses count as failed: a
server may be slow.
"""
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
        chosen = (self.due >= begin) & (self.due < end)
        return self.only(chosen)

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
        self,
        port: int,
        raw: bytes,
        values: Mapping[str, bytes],
        rate: float,
        file: Path,
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


class _Connection(asyncio.Protocol):
    def __init__(self, client: "_Client") -> None:
        self._client = client
        self._answer = bytearray()
        self._transport: Any = None
        self._due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, due: float) -> None:
        self._due = due
        self._transport.write(self._client.raw)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        length = answer_length(self._answer)
        if length is None or len(self._answer) < length or self._due is None:
            return
        due = self._due
        self._due = None
        self._client.keep(due, self._client.judge(bytes(self._answer[:length])))
        del self._answer[:length]
        self._client.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._due is not None:
            self._client.keep(self._due, FAILED)
        self._client.lost(self)

    def close(self) -> None:
        self._transport.close()


class _Client:
    def __init__(self, raw: bytes, values: Mapping[str, bytes]) -> None:
        self.raw = raw
        self._values = {version.encode(): value for version, value in values.items()}
        self.kept: list[tuple[float, float, int]] = []
        self.idle: deque[_Connection] = deque()
        self.waiting: deque[float] = deque()
        self.all: set[_Connection] = set()

    def judge(self, answer: bytes) -> int:
        version = _VERSION.search(answer)
        if not answer.startswith(b"HTTP/1.1 200") or version is None:
            return FAILED
        value = self._values.get(version[1])
        if value is not None and value in answer:
            return int(version[1])
        return MIXED

    def keep(self, due: float, version: int) -> None:
        self.kept.append((due, time.monotonic() - due, version))

    def ask(self, due: float) -> None:
        if self.idle:
            self.idle.popleft().send(due)
        else:
            self.waiting.append(due)

    def free(self, connection: _Connection) -> None:
        if self.waiting:
            connection.send(self.waiting.popleft())
        else:
            self.idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self.all.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    async def connect(self, port: int) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self),
                "127.0.0.1",
                port,
            )
        except OSError:
            if self.waiting:
                self.keep(self.waiting.popleft(), FAILED)
            return
        self.all.add(connection)
        self.free(connection)


def _record(
    port: int,
    raw: bytes,
    values: dict[str, bytes],
    rate: float,
    file: str,
    begun: Event,
    ended: Event,
) -> None:
    kept = uvloop.run(_loop(port, _Client(raw, values), rate, begun, ended))
    np.save(file, np.array(kept, dtype=np.float64).reshape(-1, 3).T)


async def _loop(
    port: int,
    client: _Client,
    rate: float,
    begun: Event,
    ended: Event,
    connections: int = 32,
) -> list[Any]:
    for _ in range(connections):
        await client.connect(port)
    begun.set()
    begin = time.monotonic()
    sent = 0
    looked = 0.0
    while True:
        now = time.monotonic()
        if now - looked > 0.05:
            looked = now
            if ended.is_set():
                break
            while len(client.all) < connections:
                before = len(client.all)
                await client.connect(port)
                if len(client.all) == before:  # no server listens
                    break
        while begin + sent / rate <= now:
            client.ask(begin + sent / rate)
            sent += 1
        await asyncio.sleep(_TICK_SECONDS)
    kept = len(client.kept)
    give_up = time.monotonic() + _PATIENCE
    while len(client.kept) < sent:
        if len(client.kept) > kept:
            kept = len(client.kept)
            give_up = time.monotonic() + _PATIENCE
        elif time.monotonic() > give_up:
            break
        await asyncio.sleep(0.01)
    answered = {due for due, _, _ in client.kept}
    client.kept += [
        (begin + number / rate, _PATIENCE, FAILED)
        for number in range(sent)
        if begin + number / rate not in answered
    ]
    for connection in list(client.all):
        connection.close()
    return client.kept
