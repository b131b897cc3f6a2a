"""The open streams of a worker: bounded, since each holds a thread, and ended one by one when the server drains."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

T = TypeVar("T")


class Streams:
    """Counts the streams that are open, and lets go of those that wait for their client once `end` is called."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: set[grpc.ServicerContext] = set()
        self._idle: set[grpc.ServicerContext] = set()
        self._is_ending = False

    @contextmanager
    def held(self, context: grpc.ServicerContext) -> Iterator[str]:
        """Holds a place for a stream; gives why there is none, or an empty string."""
        with self._lock:
            is_full = len(self._open) >= self._most
            if not is_full:
                self._open.add(context)
        try:
            yield f"{self._most} streams are open in this worker, and no more are taken" if is_full else ""
        finally:
            with self._lock:
                self._open.discard(context)

    def until_end(self, context: grpc.ServicerContext, requests: Iterator[T]) -> Iterator[T]:
        """The requests of a stream, until its client or `end` ends it."""
        while self._waits(context):
            try:
                request = next(requests)
            except (StopIteration, grpc.RpcError):
                return
            finally:
                with self._lock:
                    self._idle.discard(context)
            yield request

    def end(self) -> None:
        """Streams that wait for a request are cancelled, the others end after the answer they are at."""
        with self._lock:
            self._is_ending = True
            idle = list(self._idle)
        for context in idle:
            context.cancel()

    def _waits(self, context: grpc.ServicerContext) -> bool:
        with self._lock:
            if not self._is_ending:
                self._idle.add(context)
            return not self._is_ending
