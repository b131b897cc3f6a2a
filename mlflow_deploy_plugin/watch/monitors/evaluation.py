"""Judges a monitor's window from the inference log, logs the result to MLflow, and
counts windows' rows and labels.

The functions run in the process of a command or, because a judgement may hang or
crash, in the controller's processes: those that judge, and those that log reports,
which import Evidently. They are reused, because the imports take seconds, and end when
idle, after a maximum number of calls (memory leaks), and with the controller: two
processes must not log one window.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.processes.durable_work import TRANSIENT_ERRORS
from mlflow_deploy_plugin.core.processes.worker import Worker, WorkerPool
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.runs import LoggedRun, experiment_name
from mlflow_deploy_plugin.core.settings import Settings, load_settings
from mlflow_deploy_plugin.core.spec.monitors import (
    REGRESSION,
    MonitorKind,
    MonitorSpec,
)
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.core.spec.types import length_of
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.store import Endpoint, Store
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL, LABEL_NUMBER
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window, window_at
from mlflow_deploy_plugin.watch.result import MonitorResult, ReportData, WindowRequest
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, LevelSeries

IDLE_SECONDS = 300.0
REPORTING_IDLE_SECONDS = 30.0
_MAX_CALLS = 50
_NICE = 10
_OOM_SCORE = "500"
"""The addition to a judging process's OOM score. The kernel kills this process before
servers and the controller.
"""


Judge = Callable[[WindowRequest], MonitorResult]


@dataclass(frozen=True)
class SelectedMonitor:
    """A monitor of an endpoint, or a monitor with the default settings if the
    endpoint's spec has no monitor.

    Attributes:
        tried: the bounds that apply only to this run, such as `min_rows=50`.
        columns, exclude: the columns to judge, or the columns to leave out. If both are
            empty, the spec's columns are judged.
        has_own_rate: True if a bound of this run is the false-alarm rate.
    """

    endpoint: str
    name: str
    spec: MonitorSpec
    capture: CaptureSpec
    tried: str = ""
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    has_own_rate: bool = False
    engine: str = "local"

    def with_bounds(
        self,
        columns: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        **bounds: float | None,
    ) -> "SelectedMonitor":
        """Return the monitor with these columns and with these fields of its spec,
        except fields that are None.

        Raises InvalidConfig if columns are specified and the monitor's kind does not
        judge columns.
        """
        names_by_option = {"columns": columns, "exclude": exclude}
        options = {name: ",".join(names) for name, names in names_by_option.items() if names}
        if options and self.spec.kind != "drift":
            option = next(iter(options))
            raise InvalidConfig(
                f"--{option}: only monitors of kind drift judge columns; {self.spec.kind} does not",
            )
        new_bounds = {name: value for name, value in bounds.items() if value is not None}
        tried = ", ".join(f"{name}={value}" for name, value in (new_bounds | options).items())
        spec = self.spec.model_copy(update=new_bounds)
        if columns:
            spec = spec.model_copy(update={"columns": columns})
        return replace(
            self,
            spec=spec,
            tried=tried,
            columns=columns,
            exclude=exclude,
            has_own_rate="false_alarm_rate" in new_bounds,
        )


def window_request(
    monitor: SelectedMonitor,
    window: Window,
    settings: Settings,
    endpoint: Endpoint | None = None,
    revision: int = 0,
    notes: Sequence[str] = (),
) -> WindowRequest:
    """Return the request for a window without its past. The endpoint is None if the
    store does not have it.
    """
    monitors = endpoint.spec.monitors.values() if endpoint is not None else ()
    return WindowRequest(
        endpoint=monitor.endpoint,
        monitor=monitor.name,
        spec=monitor.spec,
        window=window,
        revision=revision,
        settings=settings,
        capture=monitor.capture,
        notes=tuple(notes),
        engine=monitor.engine,
        tried=monitor.tried,
        endpoint_created=endpoint.created_at.isoformat() if endpoint is not None else "",
        columns=monitor.columns,
        exclude=monitor.exclude,
        rows_since=endpoint.rows_since if endpoint is not None else None,
        performance=next((spec for spec in monitors if spec.kind == "performance"), None),
    )


def request_from_store(
    store: Store,
    settings: Settings,
    monitor: SelectedMonitor,
    window: Window,
    revision: int = 0,
    notes: Sequence[str] = (),
) -> WindowRequest:
    """Return the request for a window with its past and the monitor's share of the
    endpoint's budget of alarms, and with the accepted baseline and the accuracy of a
    window of the schedule.

    A window outside the schedule does not follow the levels of the past windows. With a
    budget, the notes say so; they also say that requirements share the budget.
    """
    monitors = Monitors(store)
    endpoint = store.endpoint(monitor.endpoint)
    request = window_request(monitor, window, settings, endpoint, revision, notes)
    stored = monitors.judged_windows(
        (request.endpoint, request.monitor),
        request.window.length,
        "verdict",
        "evidence",
        until=request.window.start,
        aligned_to=request.window.start,
    )
    request = replace(
        request,
        past=[
            JudgedWindow(row.start, row.verdict, Evidence.from_json(row.evidence)) for row in stored
        ],
    )
    # The budget would replace the monitor's own rate.
    if endpoint is None or monitor.has_own_rate:
        return request
    budget = endpoint.spec.budget_share(monitor.spec)
    request = replace(
        request,
        false_per_year=budget,
        has_default_budget=endpoint.spec.alarms.false_per_year is None,
        min_effect=endpoint.spec.alarms.min_effect,
    )
    scheduled = window_at(window.start_us, monitor.spec.every)
    if window != scheduled:
        request = replace(request, follows_levels=False)
        if budget is None:
            return request
        note = (
            f"the window overlaps {scheduled}, and only such windows of the schedule count for "
            "alarms over time"
        )
        return replace(request, notes=(*request.notes, note))
    starts = monitors.state(request.endpoint, request.monitor).baseline
    request = replace(
        request,
        baseline={column: datetime.fromisoformat(start) for column, start in starts.items()},
    )
    if monitor.spec.kind == "drift":
        since = request.past[0].start if request.past else window.start
        return replace(request, accuracy=_accuracy(endpoint, monitors, since, window.end))
    if budget is None:
        return request
    note = f"the requirements share a budget of {budget:.2g} false alarms per year"
    return replace(request, notes=(*request.notes, note))


def _accuracy(
    endpoint: Endpoint,
    monitors: Monitors,
    since: datetime,
    until: datetime,
) -> LevelSeries | None:
    """Return the metric of the first requirement of the endpoint's first performance
    monitor: from labels, otherwise estimated. Return None if no window has the metric.
    """
    for name, spec in endpoint.spec.monitors.items():
        if spec.kind != "performance":
            continue
        metric = spec.requirements[0].name
        stored = monitors.judged_windows(
            (endpoint.name, name),
            length_of(spec.every),
            "figures",
            until=until,
        )
        rows = [row for row in stored if row.start >= since]
        measured = np.array([row.figures.get(metric) for row in rows], np.float64)
        estimated = np.array([row.figures.get(f"estimated/{metric}") for row in rows], np.float64)
        texts = []
        if not np.isnan(measured).all():
            texts.append("from labels")
        if not np.isnan(estimated).all():
            texts.append("estimated")
        if not texts:
            return None
        return LevelSeries(
            f"{metric}, {' or '.join(texts)}",
            [row.start for row in rows],
            np.where(np.isnan(measured), estimated, measured).tolist(),
        )
    return None


def judge_window(request: WindowRequest) -> MonitorResult:
    """Judge the window, and return the result without a run. Raises OnnxserveError if
    the log or the reference cannot be read.
    """
    use_compact_memory()
    # Only judgements need these libraries.
    from mlflow_deploy_plugin.watch.run import judge

    log_rows = count_rows(request)
    return replace(judge(request), log_rows=log_rows)


def log_report(request: WindowRequest, result: MonitorResult) -> LoggedRun:
    """Draw the report, and log it with the result. If this revision already has a run,
    return that run. Raises RegistryUnavailable if MLflow does not answer.
    """
    # Only reports need these libraries.
    from mlflow_deploy_plugin.watch.reports.log import build_report, log_result

    request.progress("drawing the report")
    files = build_report(result, request.past)
    request.progress(f"logging the report to the experiment onnxserve/{request.endpoint}")
    return log_result(result, files)


def judge_and_log(
    request: WindowRequest,
    judge: Judge = judge_window,
    log: Callable[[WindowRequest, MonitorResult], LoggedRun] = log_report,
) -> MonitorResult:
    """Judge the window and log its run, with functions that may call other processes.

    Raises RegistryUnavailable if MLflow does not answer, and OnnxserveError if the log
    or the reference cannot be read.
    """
    # Check MLflow before the judgement, which takes a minute: an outage would discard
    # its result.
    with registry_errors(f"the experiment of endpoint {request.endpoint}"):
        registry_client().get_experiment_by_name(
            experiment_name(f"onnxserve/{request.endpoint}"),
        )
    result = judge(request)
    return replace(result, report=ReportData(), run=log(request, result))


def use_compact_memory() -> None:
    """Use the allocator that returns freed tables to the system. Arrow's default keeps
    30 % more for large columns.
    """
    with contextlib.suppress(NotImplementedError):  # Not every build of Arrow has it.
        pa.jemalloc_set_decay_ms(0)
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def count_rows(request: WindowRequest) -> int:
    return sum(
        log.count(request.endpoint, request.window)
        for log in _judged_logs(request.log, request.spec.kind)
    )


def has_rows(log: InferenceLog, endpoint: str, window: Window, kind: MonitorKind) -> bool:
    """Return True if the log has a row in the window, or a file of the window's hours
    that cannot be read.
    """
    for part in _judged_logs(log, kind):
        if any(len(rows) for rows in part.batches(endpoint, window, ["_row"])):
            return True
    return bool(log.unreadable)


def latest_window(log: InferenceLog, endpoint: str, spec: MonitorSpec, now: datetime) -> Window:
    """Return the latest complete window with rows for the monitor. Raises NotFound if
    no complete window has rows.
    """
    windows: list[Window] = []
    for part in _judged_logs(log, spec.kind):
        with contextlib.suppress(NotFound):
            windows.append(part.latest_window(endpoint, spec.every, now))
    if windows:
        return max(windows, key=lambda window: window.end)
    return log.latest_window(endpoint, spec.every, now)


def _judged_logs(log: InferenceLog, kind: MonitorKind) -> tuple[InferenceLog, ...]:
    """Return the log; for a monitor of kind `service_level`, also the log of failed
    requests.
    """
    if kind == "service_level":
        return (log, log.failures)
    return (log,)


def endpoint_log(settings: Settings, endpoint: Endpoint | None) -> InferenceLog:
    """Return the endpoint's log without the rows of a deleted endpoint of the same
    name.
    """
    rows_since = endpoint.rows_since if endpoint is not None else None
    return open_log(settings.inference_log, rows_since)


def files_digest(log: InferenceLog, endpoint: str, window: Window, kind: MonitorKind) -> str:
    """Return a digest of the paths and sizes of the window's files; empty if there is
    no file.
    """
    files: list[tuple[str, int]] = []
    for part in _judged_logs(log, kind):
        for hour in part.hours(endpoint, window):
            files += [(file.path, file.size) for file in hour.files]
    return digest(sorted(files)) if files else ""


def digest(value: object) -> str:
    """Return a 128-bit hash of the value's `repr` in hexadecimal."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:32]


def count_labels(requests: Sequence[WindowRequest]) -> list[int]:
    """Return the number of judged rows with a usable label per window. Raises
    OnnxserveError if the log is down.
    """
    # This import is here because the controller does not need these libraries in its
    # own process.
    from mlflow_deploy_plugin.watch.kinds.performance import affordable_rows

    counts = []
    labels = requests[0].labels
    for request in requests:
        rows = request.log.labelled(
            request.endpoint,
            request.window,
            affordable_rows(request),
            labels,
        )
        if rows is None:
            counts.append(0)
        elif any(requirement.name in REGRESSION for requirement in request.spec.requirements):
            # Only numbers count.
            counts.append(int(np.isfinite(rows.table.column(LABEL_NUMBER).to_numpy()).sum()))
        else:
            counts.append(int(pc.count(rows.table.column(LABEL)).as_py()))
    return counts


@dataclass(frozen=True)
class Evaluator:
    """The functions that judge a window and count its rows and labels. By default, they
    run in this process.
    """

    judge: Judge = judge_and_log
    count_rows: Callable[[WindowRequest], int] = count_rows
    count_labels: Callable[[Sequence[WindowRequest]], list[int]] = count_labels


def judging_worker() -> Worker:
    """Return a worker whose process has a low priority. The caller receives transient
    errors with their own class.
    """
    return Worker(_prepare_process, _MAX_CALLS, TRANSIENT_ERRORS)


def evaluator_in(judging: WorkerPool, reporting: WorkerPool, seconds: float) -> Evaluator:
    """Return an evaluator whose functions run in these workers for at most `seconds`
    each.

    The functions raise OnnxserveError if a function fails, takes too long or crashes
    its process, and ProcessEnded if the process was ended.
    """
    call = partial(judging.call, seconds=seconds)
    log = partial(reporting.call, log_report, seconds=seconds)
    return Evaluator(
        partial(judge_and_log, judge=partial(call, judge_window), log=log),
        partial(call, count_rows),
        partial(call, count_labels),
    )


def _prepare_process() -> None:
    """Give the judging process a low priority, its log and its time limits for
    MLflow.
    """
    os.nice(_NICE)  # Let servers on this machine have priority.
    with contextlib.suppress(OSError):  # Only Linux has this file.
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    warnings.simplefilter("ignore")  # Hide libraries' warnings, which address developers.
    configure_logging(load_settings().log_format, "monitor")
    # The parent process does not need this import.
    from mlflow_deploy_plugin.core.registry.connection import own_process, set_service_timeouts

    own_process()
    set_service_timeouts()
