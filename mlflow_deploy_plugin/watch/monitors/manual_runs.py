"""Windows that a user requests with `onnxserve monitor run` or `backfill` and that are
judged immediately.

The result is stored with `by_hand`, without an alert or a retraining. The monitor's
schedule is not affected.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import empty_endpoint
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.core.statedir.files import AGENT, SPOOL, is_alive, read_state
from mlflow_deploy_plugin.core.statedir.models import AgentState
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper, held_lease
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorWindow
from mlflow_deploy_plugin.core.store.store import Store, unknown_endpoint
from mlflow_deploy_plugin.serve.agent.progress import agent_name
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.source_state import source_agent
from mlflow_deploy_plugin.serve.inference_log.storage import endpoint_folder
from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US, Window, window_at
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.spool.frames import segments, shipped_bytes
from mlflow_deploy_plugin.ship.deployments.endpoints import left_specs
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.drift.references.rows import load_datasets
from mlflow_deploy_plugin.watch.monitors import evaluation, window_runner
from mlflow_deploy_plugin.watch.monitors.evaluation import (
    Evaluator,
    Judge,
    SelectedMonitor,
    judge_and_log,
)
from mlflow_deploy_plugin.watch.monitors.maintenance import files_digests
from mlflow_deploy_plugin.watch.monitors.schedule import windows_between
from mlflow_deploy_plugin.watch.monitors.scheduler import lease_name
from mlflow_deploy_plugin.watch.result import MonitorResult

DEFAULT_MONITOR = "drift"
PATIENCE_SECONDS = 60.0
"""The longest wait for a window that the controller is judging."""
MAX_BACKFILLED = 10_000
"""The maximum number of windows, more than a year of hourly windows. Each window takes
seconds and creates a run.
"""
_SHIPPING_SECONDS = 60.0
_PAUSE = 0.1
_SILENT_AFTER = timedelta(minutes=1)
"""Two intervals between the watermarks of an idle agent."""
_WAITING = "waiting for rows that the servers have not written to the inference log yet"
_NOT_SHIPPED = "some captured rows are not in the inference log yet and are not judged"
_CONSTANT_COLUMNS = {"_model": "", "_version": "", "_segment": "file", "_offset": 0}
_UNITS = (
    timedelta(days=1),
    timedelta(hours=1),
    timedelta(minutes=1),
)
_INDEPENDENT = (
    f"{{}} has event times (column {EVENT_TIME}): the rows are treated as independent of each other"
)


def find_monitor(deployments: Deployments, endpoint: str, name: str | None) -> SelectedMonitor:
    """Return the monitor of this name. By default, return the endpoint's only monitor,
    or a daily drift monitor.

    Raises NotFound if the endpoint or monitor does not exist, and InvalidConfig if
    `name` is None and the endpoint has several monitors.
    """
    stored = deployments.store.endpoint(endpoint)
    if stored is not None:
        spec = stored.spec
    else:
        # A server on this machine may have the spec. Otherwise, only the log knows the
        # endpoint.
        left = left_specs(endpoint, deployments.settings)
        if left:
            spec = left[0][1]
        else:
            captured = open_log(deployments.settings.inference_log).endpoints()
            if endpoint not in captured:
                raise unknown_endpoint(
                    endpoint,
                    {*captured, *(other.name for other in deployments.store.endpoints())},
                )
            spec = empty_endpoint(endpoint)
    if name is None and len(spec.monitors) > 1:
        raise InvalidConfig(
            f"endpoint {endpoint!r} has several monitors: select one with --monitor "
            f"{' | '.join(sorted(spec.monitors))}",
        )
    if spec.monitors:
        name = name or next(iter(spec.monitors))
    elif stored is None or not name:
        return SelectedMonitor(endpoint, name or DEFAULT_MONITOR, MonitorSpec(), spec.capture)
    return SelectedMonitor(endpoint, name, spec.monitor(name), spec.capture)


def run_window(
    deployments: Deployments,
    monitor: SelectedMonitor,
    window: Window | None,
    judge: Judge,
    engine: str = "local",
) -> tuple[MonitorWindow, MonitorResult]:
    """Judge a window; by default, the latest complete window of the monitor's length
    that has rows.

    If the window is already in the store, a new revision is added. If the bounds differ
    from the monitor's, the result is logged to MLflow and not stored. Raises
    InvalidConfig if the engine does not support this kind of monitor, NotFound if the
    window has no rows, and OnnxserveError if the window cannot be judged or the
    controller is judging it.
    """
    if engine != "local" and monitor.spec.kind != "drift":
        raise InvalidConfig(
            f"--engine {engine}: it supports monitors of kind drift, not {monitor.spec.kind}",
        )
    endpoint = deployments.store.endpoint(monitor.endpoint)
    log = evaluation.endpoint_log(deployments.settings, endpoint)
    notes = _wait_for_rows(deployments, monitor.endpoint)
    now = deployments.store.now()
    name = monitor.endpoint
    window = window or evaluation.latest_window(log, name, monitor.spec, now)
    if not evaluation.has_rows(log, name, window, monitor.spec.kind):
        latest = evaluation.latest_window(log, name, monitor.spec, now)
        raise NotFound(
            f"endpoint {name!r} has no captured rows in {window}; the latest complete window with "
            f"rows is {latest}",
        )
    monitor = replace(monitor, engine=engine)
    if monitor.tried:
        notes.append(
            f"judged once with {monitor.tried}: only logged to MLflow, not a verdict of the monitor"
        )
        request = evaluation.request_from_store(
            deployments.store,
            deployments.settings,
            monitor,
            window,
            notes=notes,
        )
        result = judge(request)
        return window_runner.unsaved_window(result, now, notes), result
    attempt = _judge_by_hand(deployments, monitor, window, judge, notes)
    if attempt.result is None:
        raise OnnxserveError(attempt.window.reason)
    return attempt.window, attempt.result


def _wait_for_rows(deployments: Deployments, endpoint: str) -> list[str]:
    """Wait until the log has the rows that servers had captured at the call, at most
    `_SHIPPING_SECONDS` per server on this machine and for all others. Return notes on
    rows that may be missing.
    """
    settings = deployments.settings
    store = deployments.store
    begun = store.now()
    say = cache(deployments.progress)  # A line is shown once.

    def pause(seconds: float) -> None:
        say(_WAITING)
        time.sleep(seconds)

    folders = {settings.state_dir(endpoint), *dict(left_specs(endpoint, settings))}
    waits = [wait_until_shipped(folder, _SHIPPING_SECONDS, pause=pause) for folder in folders]
    # The watermark of a server on this machine can be older than its spool.
    here = {agent_name(folder) for folder in folders}
    here.add(source_agent(endpoint))  # A source has rows that are on their way at any time.
    deadline = time.monotonic() + _SHIPPING_SECONDS
    while True:
        ready = window_runner.log_readiness(settings, endpoint, store.now(), _SILENT_AFTER, here)
        is_complete = ready.covers(begun)
        if is_complete or time.monotonic() > deadline:
            break
        pause(1.0)
    notes = [*ready.notes]
    if not is_complete or not all(waits):
        notes.append(_NOT_SHIPPED)
    return notes


class BackfilledWindow(NamedTuple):
    """A window of a backfill.

    Attributes:
        number: the number of the window, from 1.
        total: the number of windows of the backfill.
        is_judged_now: False if the window was already judged before the backfill.
    """

    number: int
    total: int
    window: MonitorWindow
    is_judged_now: bool


def backfill(
    deployments: Deployments,
    monitor: SelectedMonitor,
    begin: datetime,
    end: datetime,
    judge: Judge,
    again: bool = False,
) -> Iterator[BackfilledWindow]:
    """Judge the monitor's windows in [begin, end), oldest first, and yield every
    window. Without `again`, skip windows that have a verdict, or whose files have not
    changed since they could not be judged.

    Raises InvalidConfig if the period contains no complete window, or more than
    `MAX_BACKFILLED` windows.
    """
    starts = windows_between(monitor.spec, begin, end)
    if not starts:
        raise InvalidConfig(
            f"no complete window of {monitor.spec.every} is in {begin:%F %R} to {end:%F %R} UTC",
        )
    if len(starts) > MAX_BACKFILLED:
        window = window_at(starts[MAX_BACKFILLED - 1], monitor.spec.every)
        raise InvalidConfig(
            f"there are {len(starts):,} windows of {monitor.spec.every} between {begin:%F %R} and "
            f"{end:%F %R} UTC, and one backfill judges at most {MAX_BACKFILLED:,}: use --to "
            f"{window.end.isoformat()[:19]} or a monitor with longer windows",
        )
    endpoint = deployments.store.endpoint(monitor.endpoint)
    log = evaluation.endpoint_log(deployments.settings, endpoint)
    notes = _wait_for_rows(deployments, monitor.endpoint)
    for number, start in enumerate(starts, 1):
        window = window_at(start, monitor.spec.every)
        revisions = Monitors(deployments.store).revisions(
            monitor.endpoint,
            monitor.name,
            window.start,
            window.end,
        )
        judged = [revision for revision in revisions if revision.state == "judged"]
        is_due = again or not judged
        if not is_due and judged[-1].verdict == "not judged":
            is_due = files_digests(log, judged[-1:], monitor.spec) != [judged[-1].log_digest]
        if is_due:
            newest = _judge_by_hand(deployments, monitor, window, judge, notes).window
        else:
            newest = judged[-1]
        yield BackfilledWindow(number, len(starts), newest, is_due)


def run_due(
    deployments: Deployments,
    monitor: SelectedMonitor,
    say: Callable[[str], None],
) -> Iterator[MonitorWindow]:
    """Judge every due window of the monitor, oldest first, with alerts and retrainings
    as in the controller.

    This function is for a command that runs on its own schedule instead of a
    controller, such as a CronJob. The function ends after a failed attempt: the window
    is stored, and the next call retries it. If the pause after the attempt is not over,
    the call yields the unjudged window, so that the second pod of a Job does not report
    success.

    Raises NotFound if the endpoint or its monitor is not in the store, and
    OnnxserveError if the log cannot be read.
    """
    stored = deployments.store.endpoint(monitor.endpoint)
    if stored is None:
        raise NotFound(
            f"there is no endpoint {monitor.endpoint!r} in the store, which lists the due windows",
        )
    stored.spec.monitor(monitor.name)
    runner = window_runner.WindowRunner(deployments, Evaluator(judge_and_log), say)
    key = monitor.endpoint, monitor.name
    while True:
        with hold_lease(deployments.store, *key) as keeper:
            outcome = runner.run_next(*key, keeper)
            is_idle = outcome is window_runner.Idle.NOTHING_DUE
            if is_idle and runner.add_late_revisions(*key):
                continue
        if isinstance(outcome, MonitorWindow):
            yield outcome
            if outcome.state == "pending":  # The attempt failed.
                return
            continue
        if is_idle and not runner.monitors.state(*key).paused:
            pending = runner.monitors.windows(*key, states=("pending",), by_hand=False)
            for waiting in pending[:1]:
                say(window_runner.window_summary(waiting))
                yield waiting
        return


def hold_lease(store: Store, endpoint: str, monitor: str) -> AbstractContextManager[LeaseKeeper]:
    """Hold the monitor's lease in a `with` block. Raises OnnxserveError if another
    process still holds it after `PATIENCE_SECONDS`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS

    def wait_for(holder: str) -> None:
        if time.monotonic() > deadline:
            raise OnnxserveError(
                f"a window of monitor {monitor!r} is being judged by {holder}: try again later",
            )

    return held_lease(store, lease_name(endpoint, monitor), wait_for)


def _judge_by_hand(
    deployments: Deployments,
    monitor: SelectedMonitor,
    window: Window,
    judge: Judge,
    notes: Sequence[str],
) -> window_runner.Attempt:
    """Judge the unjudged revision of the window that a user requested. If it does not
    exist, add a revision.

    Raises OnnxserveError if another process holds the lease, or the lease is lost.
    """
    runner = window_runner.WindowRunner(deployments, Evaluator(judge), lambda line: None)
    with hold_lease(deployments.store, monitor.endpoint, monitor.name) as keeper:
        key = monitor.endpoint, monitor.name, window.start, window.end
        revisions = runner.monitors.revisions(*key)
        requested = [row for row in revisions if row.by_hand and row.state != "judged"]
        revision = requested[-1] if requested else runner.monitors.add(*key, by_hand=True)
        attempt = runner.judge_window(revision, monitor, keeper, notes)
    if attempt is None:
        raise OnnxserveError(
            "the lease of the monitor was lost while a window was judged: try again",
        )
    return attempt


def run_files(
    name: str,
    rows: str,
    reference: str,
    settings: Settings,
    judge: Judge,
    **bounds: Any,
) -> tuple[MonitorWindow, MonitorResult]:
    """Compare the rows of two files as a drift monitor does, and log the report to the
    experiment `onnxserve/NAME`.

    No endpoint is needed. The rows become a window of a temporary log, because the log
    is the only source of a window's rows for the judgement, which reads them several
    times in parts; only the MLflow run is kept. If only one file is CSV, its columns
    get the types of the Parquet file's columns; if both files are CSV, types that fit
    the texts of both files. If both files have event times, the rows are one window,
    which is compared with windows of the same length in the reference. Otherwise, the
    rows are compared as independent samples, and a note reports this.

    `bounds` are the arguments of `SelectedMonitor.with_bounds`. Above a million rows, a
    sample is used.

    Raises NotFound if a file is missing, InvalidConfig if a file cannot be read or has
    no rows or `name` is not a valid endpoint name, and RegistryUnavailable if MLflow or
    the storage of a file does not answer.
    """
    empty_endpoint(name)
    evaluation.use_compact_memory()
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="onnxserve-rows-") as folder:
        log_settings = settings.model_copy(update={"log_uri": folder})
        log = Path(log_settings.inference_log) / endpoint_folder(name)
        file_rows = _write_rows(rows, reference, bounds.get("exclude", ()), now, log)
        spec = MonitorSpec(
            reference=f"dataset:{reference}",
            independent_rows=not file_rows.has_times,
        )
        monitor = SelectedMonitor(name, DEFAULT_MONITOR, spec, CaptureSpec()).with_bounds(**bounds)
        tried = ", ".join(filter(None, [f"rows={rows}", f"reference={reference}", monitor.tried]))
        request = evaluation.window_request(
            replace(monitor, tried=tried),
            file_rows.window,
            log_settings,
            notes=file_rows.notes,
        )
        result = judge(request)
    return window_runner.unsaved_window(result, now, file_rows.notes), result


@dataclass(frozen=True)
class _FileRows:
    """The rows of a file, which are in a log.

    Attributes:
        window: the window with all rows.
        has_times: True if the file and its reference have event times.
    """

    window: Window
    has_times: bool
    notes: tuple[str, ...]


def _write_rows(
    rows: str,
    reference: str,
    exclude: Collection[str],
    now: datetime,
    folder: Path,
) -> _FileRows:
    """Write the rows of a file to the folder of an endpoint in a log. When this
    function returns, no table is in memory: two tables of a million rows take half a
    gigabyte, and the judgement reads the rows in parts.
    """
    data, against = load_datasets([rows, reference], exclude=exclude)
    without_times = [dataset.shown for dataset in (data, against) if dataset.times is None]
    del against
    notes = [*data.notes]
    if len(without_times) == 2:
        notes.append(_INDEPENDENT.format("neither file"))
    elif without_times:
        notes.append(_INDEPENDENT.format(f"only one file (not {without_times[0]})"))
    if data.times is None:
        times = np.full(
            len(data.table),
            int(now.timestamp()) * 1_000_000,
        )
        window = window_at(int(times[0]), "1d")
    else:
        times = data.times
        # The smallest window of complete days, hours or minutes. The windows of the
        # reference have the same phase.
        start = EPOCH + timedelta(microseconds=int(times.min()))
        end = EPOCH + timedelta(microseconds=int(times.max()))
        unit = next((length for length in _UNITS if end - start >= length), _UNITS[-1])
        window = Window(start - (start - EPOCH) % unit, end - (end - EPOCH) % unit + unit)
    _write_hours(data.table, times, folder)
    return _FileRows(window, has_times=not without_times, notes=tuple(notes))


def _write_hours(rows: pa.Table, times: Array, folder: Path) -> None:
    """Write a file of rows for each hour of the event times, [N], to the endpoint's
    folder in a log. The rows of an hour keep their order.
    """
    table = rows.select([name for name in rows.column_names if not name.startswith("_")])
    table = table.append_column(EVENT_TIME, pa.array(times, pa.timestamp("us", tz="UTC")))
    for name, constant in _CONSTANT_COLUMNS.items():
        table = table.append_column(name, pa.repeat(constant, len(rows)))
    table = table.append_column("_row", pa.array(np.arange(len(rows), dtype=np.int32)))
    hours = times // HOUR_US
    order = np.argsort(hours, kind="stable")
    is_sorted = bool((hours[1:] >= hours[:-1]).all())
    distinct_hours, begins = np.unique(hours[order], return_index=True)
    for hour, begin, end in zip(distinct_hours, begins, [*begins[1:], len(table)], strict=True):
        name = f"{EPOCH + timedelta(hours=int(hour)):date=%Y-%m-%d/hour=%H/rows.parquet}"
        (folder / name).parent.mkdir(parents=True)
        # A reader holds a page and a dictionary per column. If they are small, 30
        # columns take 80 MB less.
        if is_sorted:
            part = table.slice(begin, end - begin)
        else:
            part = table.take(pa.array(order[begin:end]))
        pq.write_table(
            part,
            folder / name,
            data_page_size=2**17,
            dictionary_pagesize_limit=2**17,
        )


def wait_until_shipped(
    folder: Path,
    limit: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait at most `limit` seconds for a running agent to ship the folder's spool;
    return True if it is shipped, and False if the time is over or no agent runs.
    """
    deadline = clock() + limit
    segment_bytes: dict[Path, int] = {}
    for segment in segments(folder / SPOOL):
        with suppress(FileNotFoundError):  # A segment is deleted when all its rows are in the log.
            segment_bytes[segment] = segment.stat().st_size
    while any(
        segment.exists() and shipped_bytes(segment) < written_bytes
        for segment, written_bytes in segment_bytes.items()
    ):
        agent = read_state(folder / AGENT, AgentState)
        if clock() >= deadline or agent is None or not is_alive(agent.pid):
            return False
        pause(_PAUSE)
    return True
