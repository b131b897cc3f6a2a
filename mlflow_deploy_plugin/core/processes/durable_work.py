"""Attempts at rollouts, retrainings and monitors in threads of this process, and the
fire times of schedules.

All pending work is in the store, so the next holder of the lease repeats an interrupted
attempt. The state of a `WorkRunner` (running attempts and pauses) may be lost.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from mlflow_deploy_plugin.core.errors import InvalidConfig, RegistryUnavailable, StoreUnavailable
from mlflow_deploy_plugin.core.processes.child import backoff_seconds
from mlflow_deploy_plugin.core.spec.types import crontab_times, load_time_zone

_log = logging.getLogger(__name__)

TRANSIENT_ERRORS = (RegistryUnavailable, StoreUnavailable)
"""Errors of an outage, after which the same work may succeed."""
MAX_BACKOFF = timedelta(minutes=10)

PlanT = TypeVar("PlanT")
Attempt = Callable[[], float]
"""A function that attempts some work once and returns the seconds until the next
attempt.
"""


def next_fire(schedule: str, time_zone: str, after: datetime) -> datetime:
    """Return the first UTC time after `after` that matches a crontab line
    (`crontab_times`). Raises InvalidConfig.
    """
    times = crontab_times(schedule, after.astimezone(load_time_zone(time_zone)))
    # If an hour occurs twice (DST), `crontab_times` starts in the first hour, even if
    # `after` is in the second hour.
    return next(time.astimezone(UTC) for time in times if time.astimezone(UTC) > after)


def backoff(failures: int) -> timedelta:
    """Return the pause after this number of failed attempts: 15 s, doubled after each
    failure, at most 10 minutes.
    """
    return timedelta(seconds=backoff_seconds(failures, MAX_BACKOFF.total_seconds(), first=15.0))


@dataclass
class _Work:
    is_running: bool = False
    not_before: float = 0.0
    defects: int = 0


@dataclass(eq=False)
class WorkRunner:
    """A pool of daemon threads that runs attempts: one at a time per key, in the order
    in which they were added.

    `failure_seconds` is the pause after an unexpected exception. The exception is
    logged, and `on_defect` is called with the key, the exception and the number of
    consecutive exceptions.
    """

    name: str
    at_once: int
    failure_seconds: float
    on_defect: Callable[[Hashable, Exception, int], None] = lambda key, error, count: None
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.finished = threading.Event()
        self._works: dict[Hashable, _Work] = {}
        self._waiting: deque[tuple[Hashable, Attempt]] = deque()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def is_free(self, key: Hashable) -> bool:
        """Return True if no attempt with this key is running or queued and the key's
        pause is over.
        """
        work = self._works.get(key)
        return work is None or not (work.is_running or work.not_before > self.monotonic())

    def start(self, key: Hashable, attempt: Attempt) -> None:
        """Start the attempt when a thread is free. Ignore the attempt if the key is not
        free (`is_free`).
        """
        with self._lock:
            if not self.is_free(key):
                return
            self._works.setdefault(key, _Work()).is_running = True
            self._waiting.append((key, attempt))
            if len(self._threads) < self.at_once:
                thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._threads.add(thread)
                thread.start()

    def pause(self, key: Hashable, seconds: float) -> None:
        """Start no attempt with this key for this number of seconds."""
        self._works.setdefault(key, _Work()).not_before = self.monotonic() + seconds

    def stop(self, wait: bool) -> None:
        """Discard queued attempts. If `wait` is True, wait for the running attempts."""
        with self._lock:
            self._waiting.clear()
            threads = [*self._threads]
        if wait:
            for thread in threads:
                thread.join()

    def _run(self) -> None:
        """Run the waiting works, one after another, until none is waiting."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                key, attempt = self._waiting.popleft()
            work = self._works[key]
            try:
                pause = attempt()
                work.defects = 0
            except Exception as error:  # noqa: BLE001 — an error of any class ends only this attempt
                _log.exception(
                    "%s %s: the attempt failed; next attempt in %g s",
                    self.name,
                    key,
                    self.failure_seconds,
                )
                pause = self.failure_seconds
                work.defects += 1
                try:
                    self.on_defect(key, error, work.defects)
                except Exception:  # noqa: BLE001 — the thread must continue with other work
                    _log.exception("%s %s: the error handler failed", self.name, key)
            work.not_before = max(work.not_before, self.monotonic() + pause)
            work.is_running = False
            self.finished.set()


def read_plan(kind: TypeAdapter[PlanT], written: object, what: str) -> PlanT:
    """Return the plan that was stored as `written`. Raise InvalidConfig if its format
    is not valid.
    """
    try:
        return kind.validate_python(written)
    except ValidationError as error:
        wrong = "; ".join(
            ": ".join(
                [
                    *map(str, problem["loc"]),
                    problem["msg"],
                ]
            )
            for problem in error.errors()
        )
        raise InvalidConfig(f"{what} in the store cannot be read ({wrong})") from None
