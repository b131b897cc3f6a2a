"""Windows that a person asks for, judged at once by `onnxserve monitor run` and `backfill`.

The result is stored with `by_hand`; no alert is sent and no retraining is started. The schedule still judges its
windows.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.controller.monitors.evaluation import (
    EvaluatedWindow,
    Evaluator,
    Judge,
    endpoint_log,
    has_rows,
    judge_and_log,
    latest_window,
    window_request,
)
from mlflow_deploy_plugin.controller.monitors.schedule import windows_between
from mlflow_deploy_plugin.controller.monitors.scheduler import lease_name
from mlflow_deploy_plugin.controller.monitors.window_runner import (
    Idle,
    WindowRunner,
    as_judged,
    unsaved_window,
    window_summary,
)
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.deployments.endpoints import left_specs
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.inference_log import EPOCH, HOUR_US, Window, open_log
from mlflow_deploy_plugin.inference_log.windows import window_at
from mlflow_deploy_plugin.monitoring import Engine, WindowRequest
from mlflow_deploy_plugin.monitoring.drift.references.rows import ReferenceRows, load_datasets
from mlflow_deploy_plugin.runtime.log_columns import EVENT_TIME
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import KINDS_WITH_REFERENCE, CaptureSpec, MonitorSpec, empty_endpoint
from mlflow_deploy_plugin.spool import segments, shipped_bytes
from mlflow_deploy_plugin.statedir import AgentState
from mlflow_deploy_plugin.statedir.files import AGENT, SPOOL, is_alive, read_state
from mlflow_deploy_plugin.store import Monitors, MonitorWindow, held_lease, unknown_endpoint
from mlflow_deploy_plugin.store.leases import LeaseKeeper

DEFAULT_MONITOR = "drift"
PATIENCE_SECONDS = 60.0
"""The longest wait for a window that the controller is judging."""
MAX_BACKFILLED = 10_000
"""Over a year of hours; each is a run in MLflow, and takes seconds."""
_SHIPPING_SECONDS = 20.0
_PAUSE = 0.1
_NOT_SHIPPED = "some captured rows have not reached the inference log yet and are not judged"
_OWN = {"_model": "", "_version": "", "_segment": "file"}
_UNITS = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1))
_INDEPENDENT = f"{{}} says when its rows happened (a column {EVENT_TIME}): they are taken as independent of each other"


@dataclass(frozen=True)
class SelectedMonitor:
    """A monitor of an endpoint, or a monitor with the default settings if the endpoint's spec has none.

    `tried` has bounds that replace the spec's for this run (`min_rows=50`); the monitor's own verdict then stays. Only
    `columns` are judged, or all but `exclude`; if both are empty, the spec's columns are judged.
    """

    endpoint: str
    name: str
    spec: MonitorSpec
    capture: CaptureSpec
    tried: str = ""
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def with_bounds(
        self, columns: tuple[str, ...] = (), exclude: tuple[str, ...] = (), **bounds: float | None
    ) -> "SelectedMonitor":
        """Return the monitor with these fields of its spec replaced; None leaves a field as it is.

        Raises InvalidConfig if columns are named and the monitor's kind does not judge columns.
        """
        named = {name: ",".join(names) for name, names in (("columns", columns), ("exclude", exclude)) if names}
        if named and self.spec.kind not in KINDS_WITH_REFERENCE:
            kinds = ", ".join(KINDS_WITH_REFERENCE)
            raise InvalidConfig(f"--{next(iter(named))}: monitors of {kinds} judge columns, not {self.spec.kind}")
        given = {name: value for name, value in bounds.items() if value is not None}
        tried = ", ".join(f"{name}={value}" for name, value in (given | named).items())
        spec = self.spec.model_copy(update=given | ({"columns": columns} if columns else {}))
        return replace(self, spec=spec, tried=tried, columns=columns, exclude=exclude)


def find_monitor(deployments: Deployments, endpoint: str, name: str | None) -> SelectedMonitor:
    """Return the monitor of this name; by default the endpoint's only monitor, or a daily drift monitor if it has none.

    Raises NotFound if the endpoint or monitor does not exist, and InvalidConfig if `name` is None and there are
    several.
    """
    stored = deployments.store.endpoint(endpoint)
    if stored is not None:
        spec = stored.spec
    elif left := left_specs(endpoint, deployments.settings):  # of a server of this machine
        spec = left[0][1]
    else:  # rows may have been captured under the name
        captured = open_log(deployments.settings.inference_log).endpoints()
        if endpoint not in captured:
            raise unknown_endpoint(endpoint, {*captured, *(one.name for one in deployments.store.endpoints())})
        spec = empty_endpoint(endpoint)
    if name is None and len(spec.monitors) > 1:
        raise InvalidConfig(
            f"endpoint {endpoint!r} has several monitors: say which, --monitor {' | '.join(sorted(spec.monitors))}"
        )
    if spec.monitors or (stored and name):
        name = name or next(iter(spec.monitors))
        return SelectedMonitor(endpoint, name, spec.monitor(name), spec.capture)
    return SelectedMonitor(endpoint, name or DEFAULT_MONITOR, MonitorSpec(), spec.capture)


def run_window(
    deployments: Deployments, monitor: SelectedMonitor, window: Window | None, judge: Judge, engine: Engine = "local"
) -> tuple[MonitorWindow, EvaluatedWindow]:
    """Judge a window, by default the latest whole window of the monitor's length that has rows.

    A window that is already in the store gets a further revision. A result with bounds other than the monitor's is
    stored only in MLflow; the returned window is then not in the store. Raises InvalidConfig if Spark does not support
    this kind of monitor, NotFound if the window has no rows, and OnnxserveError if it cannot be judged or the
    controller judges it.
    """
    if engine == "spark" and monitor.spec.kind not in KINDS_WITH_REFERENCE:
        raise InvalidConfig(
            f"--engine spark: monitors of {', '.join(KINDS_WITH_REFERENCE)} are sketched, not {monitor.spec.kind}"
        )
    endpoint = deployments.store.endpoint(monitor.endpoint)
    log, left = endpoint_log(deployments.settings, endpoint), left_specs(monitor.endpoint, deployments.settings)
    folders = {deployments.settings.state_dir(monitor.endpoint), *(folder for folder, _ in left)}
    is_shipped = all(wait_until_shipped(folder, _SHIPPING_SECONDS) for folder in folders)
    now = deployments.store.now()
    window = window or latest_window(log, monitor.endpoint, monitor.spec, now)
    if not has_rows(log, monitor.endpoint, window, monitor.spec.kind):
        latest = latest_window(log, monitor.endpoint, monitor.spec, now)
        raise NotFound(
            f"endpoint {monitor.endpoint!r} has no captured rows in {window}; the latest whole window with rows is "
            f"{latest}"
        )
    results: list[EvaluatedWindow] = []

    def judge_once(request: WindowRequest) -> EvaluatedWindow:
        named = replace(request, columns=monitor.columns, exclude=monitor.exclude)
        results.append(judge(replace(named, engine=engine, capture=monitor.capture)))
        return results[-1]

    notes: tuple[str, ...] = () if is_shipped else (_NOT_SHIPPED,)
    if monitor.tried:
        unsaved = unsaved_window(monitor.endpoint, monitor.name, window, deployments.store.now())
        notes = (*notes, f"judged with {monitor.tried} for once: in MLflow alone, no verdict of the monitor")
        request = window_request(unsaved, monitor.spec, deployments.settings, endpoint, notes)
        return as_judged(unsaved, judge_once(replace(request, tried=monitor.tried)), notes), results[-1]
    taken = _judge_by_hand(deployments, monitor, window, judge_once, notes)
    if taken.state != "judged":
        raise OnnxserveError(taken.reason)
    return taken, results[-1]


def backfill(
    deployments: Deployments, monitor: SelectedMonitor, begin: datetime, end: datetime, judge: Judge
) -> Iterator[tuple[int, int, MonitorWindow, bool]]:
    """Judge the monitor's windows in [begin, end), oldest first, and skip judged windows.

    Yield the number of the window from 1, how many there are, the window, and True if it was judged now. Raises
    InvalidConfig if the time has no whole window, or more than `MAX_BACKFILLED`.
    """
    starts = windows_between(monitor.spec, begin, end)
    if not starts:
        raise InvalidConfig(f"no whole window of {monitor.spec.every} lies between {begin:%F %R} and {end:%F %R} UTC")
    if len(starts) > MAX_BACKFILLED:
        last = window_at(starts[MAX_BACKFILLED - 1], monitor.spec.every).end
        raise InvalidConfig(
            f"{len(starts):,} windows of {monitor.spec.every} lie between {begin:%F %R} and {end:%F %R} UTC, and one "
            f"backfill judges at most {MAX_BACKFILLED:,}: say --to {last.isoformat()[:19]}, or take a monitor of "
            "longer windows"
        )

    def judge_as_selected(request: WindowRequest) -> EvaluatedWindow:
        return judge(replace(request, capture=monitor.capture))  # the monitor may be missing in the store

    for number, start in enumerate(starts, 1):
        window = window_at(start, monitor.spec.every)
        revisions = Monitors(deployments.store).revisions(monitor.endpoint, monitor.name, window.start, window.end)
        judged = [one for one in revisions if one.state == "judged"]
        if judged:
            yield number, len(starts), judged[-1], False
        else:
            yield number, len(starts), _judge_by_hand(deployments, monitor, window, judge_as_selected), True


def run_due(deployments: Deployments, monitor: SelectedMonitor, say: Callable[[str], None]) -> Iterator[MonitorWindow]:
    """Judge every window of the monitor that is due, oldest first, with all consequences, as the controller would.

    It is for a command that runs at its own times instead of a controller, such as a CronJob. A failed attempt ends it:
    the window is in the store, and the next call tries again. If that attempt's pause is not over, a call yields the
    window as it is: a Job whose second pod finds nothing to try must not succeed.

    Raises:
        NotFound: the endpoint is not in the store, or has no such monitor.
        OnnxserveError: the log cannot be read.
    """
    stored = deployments.store.endpoint(monitor.endpoint)
    if stored is None:
        raise NotFound(f"there is no endpoint {monitor.endpoint!r} in the store, which knows what is due")
    stored.spec.monitor(monitor.name)
    runner = WindowRunner(deployments, Evaluator(judge_and_log), say)
    while True:
        with _hold_lease(deployments, monitor) as keeper:
            taken = runner.run_next(monitor.endpoint, monitor.name, keeper)
            if taken is Idle.NOTHING_DUE and runner.add_late_revisions(monitor.endpoint, monitor.name):
                continue
        if taken is Idle.NOTHING_DUE and not runner.monitors.state(monitor.endpoint, monitor.name).paused:
            pending = runner.monitors.windows(monitor.endpoint, monitor.name, states=("pending",), by_hand=False)
            for waiting in pending[:1]:
                say(window_summary(waiting))
                yield waiting
        if taken is None or isinstance(taken, Idle):
            return
        yield taken
        if taken.state == "pending":
            return


def _hold_lease(deployments: Deployments, monitor: SelectedMonitor) -> AbstractContextManager[LeaseKeeper]:
    deadline = time.monotonic() + PATIENCE_SECONDS

    def wait_for(holder: str) -> None:
        if time.monotonic() > deadline:
            raise OnnxserveError(f"a window of monitor {monitor.name!r} is being judged by {holder}: try again later")

    return held_lease(deployments.store, lease_name(monitor.endpoint, monitor.name), wait_for)


def _judge_by_hand(
    deployments: Deployments, monitor: SelectedMonitor, window: Window, judge: Judge, notes: Sequence[str] = ()
) -> MonitorWindow:
    """Judge the window's pending revision that was asked for by hand, otherwise a further revision."""
    runner = WindowRunner(deployments, Evaluator(judge), lambda line: None, by_hand=True)
    with _hold_lease(deployments, monitor) as keeper:
        key = monitor.endpoint, monitor.name, window.start, window.end
        revisions = runner.monitors.revisions(*key)
        asked_for = [one for one in revisions if one.by_hand and one.state != "judged"]
        revision = asked_for[-1] if asked_for else runner.monitors.add(*key, by_hand=True)
        taken = runner.judge_window(revision, monitor.spec, keeper, notes)
    if taken is None:
        raise OnnxserveError("the lease of the monitor was lost while a window was judged: try again")
    return taken


def run_files(
    name: str, rows: str, reference: str, settings: Settings, judge: Judge, **bounds: Any
) -> tuple[MonitorWindow, EvaluatedWindow]:
    """Compare the rows of two files, and log the report to the experiment `onnxserve/NAME`.

    No endpoint is needed. The rows become a window of a temporary log; verdict and report are those of a drift monitor.
    Only the MLflow run is written. A CSV column has the type of the same column in the other file if that is Parquet,
    otherwise the type that fits the texts of both files. If both files have event times, the rows are one window that
    is compared with windows of the reference of the same length. Otherwise rows are compared with rows as independent
    samples, and a note reports this.

    Args:
        rows / reference: Parquet or CSV, a path or any URI that MLflow can fetch; above a million rows a sample is
            taken.
        bounds: as `SelectedMonitor.with_bounds` takes them.

    Raises NotFound if a file is missing, InvalidConfig if a file cannot be read or has no rows or `name` is not valid
    for an endpoint, and RegistryUnavailable if MLflow or the storage of a file does not answer.
    """
    empty_endpoint(name)
    found, against = load_datasets([rows, reference])
    without = [one.shown for one in (found, against) if one.times is None]
    neither = "neither file" if len(without) == 2 else f"only one file (not {''.join(without)})"
    notes = [*found.notes, *([_INDEPENDENT.format(neither)] if without else [])]
    spec = MonitorSpec(reference=f"dataset:{reference}", independent_rows=bool(without))
    monitor = SelectedMonitor(name, DEFAULT_MONITOR, spec, CaptureSpec()).with_bounds(**bounds)
    now = datetime.now(UTC)
    times = found.times if found.times is not None else np.full(len(found.table), int(now.timestamp()) * 1_000_000)
    if found.times is None:
        window = window_at(int(times[0]), "1d")
    else:  # as long as the rows last, in whole days, hours or minutes, so that the reference's windows keep its phase
        start, end = (EPOCH + timedelta(microseconds=int(time)) for time in (times.min(), times.max()))
        unit = next((one for one in _UNITS if end - start >= one), _UNITS[-1])
        window = Window(start - (start - EPOCH) % unit, end - (end - EPOCH) % unit + unit)
    unsaved = unsaved_window(name, DEFAULT_MONITOR, window, now)
    with tempfile.TemporaryDirectory(prefix="onnxserve-rows-") as folder:
        alone = settings.model_copy(update={"log_uri": folder})
        _lay_out(found, times, Path(alone.inference_log) / f"endpoint={name}")
        tried = ", ".join(filter(None, [f"rows={rows}", f"reference={reference}", monitor.tried]))
        request = window_request(unsaved, monitor.spec, alone, None, notes)
        result = judge(replace(request, tried=tried, columns=monitor.columns, exclude=monitor.exclude))
    return as_judged(unsaved, result, notes), result


def _lay_out(rows: ReferenceRows, times: np.ndarray, folder: Path) -> None:
    count = len(rows.table)
    table = rows.table.select([name for name in rows.table.column_names if not name.startswith("_")])
    table = table.append_column(EVENT_TIME, pa.array(times, pa.timestamp("us", tz="UTC")))
    for name, value in _OWN.items():
        table = table.append_column(name, pa.array([value] * count))
    table = table.append_column("_offset", pa.array(np.zeros(count, np.int64)))
    table = table.append_column("_row", pa.array(np.arange(count, dtype=np.int32)))
    hours = times // HOUR_US
    order = np.argsort(hours, kind="stable")
    sorted_table = table.take(pa.array(order))
    found, begins = np.unique(hours[order], return_index=True)
    for hour, begin, end in zip(found, begins, [*begins[1:], count], strict=True):
        moment = EPOCH + timedelta(hours=int(hour))
        place = folder / moment.strftime("date=%Y-%m-%d/hour=%H")
        place.mkdir(parents=True)
        pq.write_table(sorted_table.slice(begin, end - begin), place / "rows.parquet")


def wait_until_shipped(
    folder: Path,
    patience: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait at most `patience` seconds for a living agent to ship the folder's spool; return True if it is shipped."""
    deadline = clock() + patience
    sizes: dict[Path, int] = {}
    for segment in segments(folder / SPOOL):
        with suppress(FileNotFoundError):  # a segment that the agent has deleted is in the log
            sizes[segment] = segment.stat().st_size
    while any(segment.exists() and shipped_bytes(segment) < size for segment, size in sizes.items()):
        agent = read_state(folder / AGENT, AgentState)
        if clock() >= deadline or agent is None or not is_alive(agent.pid):
            return False
        pause(_PAUSE)
    return True
