"""Maintains the inference log once an hour: compaction, retention, and watermarks of agents that are gone.

It runs in a child process, because it reads and writes whole hours.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from mlflow_deploy_plugin.controller.leadership import LeaseKeeper, log_errors
from mlflow_deploy_plugin.controller.monitors.evaluation import IDLE_SECONDS, judging_worker
from mlflow_deploy_plugin.controller.monitors.schedule import oldest_unjudged_start
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.inference_log import (
    GONE_AFTER,
    InferenceLog,
    MaintenanceResult,
    Window,
    expire_watermarks,
    maintain,
    open_log,
    parse_window,
    wrap_log_errors,
)
from mlflow_deploy_plugin.processes import ProcessEnded, Worker
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import bin_period, duration_seconds
from mlflow_deploy_plugin.store import Endpoint, Monitors

_log = logging.getLogger(__name__)

_EVERY_SECONDS = 3600.0
_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class RetainedWindows:
    """The parts of the log that an endpoint's monitors will read again, however old they are.

    Attributes:
        windows: of event time.
        rolling: for each `rolling:` reference the time before the next window; the rows that its bins are frozen on may
            lie long before that.
    """

    windows: list[Window] = field(default_factory=list)
    rolling: list[Window] = field(default_factory=list)

    def of(self, log: InferenceLog, endpoint: str) -> list[Window]:
        """Return all of them. Raises OnnxserveError if the log is down."""
        hours = log.hours(endpoint) if self.rolling else []
        frozen = [Window(*bin_period(hours[0].start, past.end, past.length)) for past in self.rolling if hours]
        return [*self.windows, *frozen]


class LogMaintenance:
    """Maintains the logs of the store's endpoints."""

    def __init__(self, deployments: Deployments, every_seconds: float = _EVERY_SECONDS) -> None:
        self._deployments = deployments
        self._every_seconds = every_seconds

    def run(self, keeper: LeaseKeeper, over: threading.Event) -> None:
        """Work until the lease is lost or `over` is set. The first maintenance comes an hour after the start."""
        process = judging_worker()

        def end() -> None:
            over.wait()
            process.end()

        threading.Thread(target=end, daemon=True).start()
        began = time.monotonic()
        while keeper.is_held and not over.is_set():
            if time.monotonic() - began >= self._every_seconds:
                log_errors(lambda: self._maintain_all(process, over))
                began = time.monotonic()
            process.end_if_idle(IDLE_SECONDS)
            over.wait(min(5.0, self._every_seconds))
        process.end()

    def _maintain_all(self, process: Worker, over: threading.Event) -> None:
        now, settings = self._deployments.store.now(), self._deployments.settings
        for endpoint in self._deployments.store.endpoints():
            if over.is_set():
                return
            try:
                retention = endpoint.spec.capture.retention
                needed = (
                    retained_windows(Monitors(self._deployments.store), endpoint, now)
                    if retention
                    else RetainedWindows()
                )
                arguments = settings, endpoint.name, now, retention, needed
                done: MaintenanceResult = process.call(maintain_log, *arguments, seconds=_TIMEOUT_SECONDS)
                if done.expired_files:
                    what = f"{done.expired_files:,} files ({done.expired_bytes:,} bytes)"
                    _log.info("%s: %s older than capture.retention %s were deleted", endpoint.name, what, retention)
            except ProcessEnded:
                return
            except OnnxserveError as error:
                _log.warning("%s: the log's upkeep has failed, again in an hour: %s", endpoint.name, error.message)
        try:
            if gone := process.call(forget_agents, settings, now, seconds=_TIMEOUT_SECONDS):
                line = "agents that have said nothing for %d days are forgotten: %s"
                _log.info(line, GONE_AFTER.days, ", ".join(gone))
        except ProcessEnded:
            return
        except OnnxserveError as error:
            _log.warning("what agents said that are gone cannot be deleted, again in an hour: %s", error.message)


def maintain_log(
    settings: Settings, endpoint: str, now: datetime, retention: str | None, needed: RetainedWindows
) -> MaintenanceResult:
    """Compact the hours that are over, and delete what is older than the endpoint's retention, if it has one."""
    keep = timedelta(seconds=duration_seconds(retention)) if retention is not None else None
    log = open_log(settings.inference_log)
    return maintain(log, endpoint, now, keep, needed.of(log, endpoint))


def forget_agents(settings: Settings, now: datetime) -> list[str]:
    """Delete the watermarks of agents that are gone for long, as of pods of earlier days, and return their names."""
    location = open_log(settings.inference_log).location
    with wrap_log_errors(location):
        return expire_watermarks(location, now)


def retained_windows(monitors: Monitors, endpoint: Endpoint, now: datetime) -> RetainedWindows:
    """Return the pinned references, and what windows read that wait to be judged or will be caught up on."""
    needed = RetainedWindows()
    for name, spec in endpoint.spec.monitors.items():
        kind, _, value = spec.reference.partition(":")
        if kind == "window":
            needed.windows.append(parse_window(value))
        waiting = monitors.windows(endpoint.name, name, states=("pending", "running"))
        begin = oldest_unjudged_start(endpoint, monitors.state(endpoint.name, name), now)
        oldest = min([begin, *(window.start for window in waiting)])
        if oldest < now:
            needed.windows.append(Window(oldest - spec.history, now))
        if spec.is_rolling:
            needed.rolling.append(Window(oldest - spec.history, oldest))
    return needed
