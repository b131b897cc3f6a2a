"""Windows that a person asks for: judged here and now, and written down as asked for by hand.

Nobody else is told of what is found, and nothing is started: whoever asks sees it. The schedule judges and tells of the
windows that it comes to all the same, and of no others.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from mlflow_deploy_plugin.controller.leadership import LeaseKeeper
from mlflow_deploy_plugin.controller.monitors.evaluation import (
    Judge,
    LoggedResult,
    count_rows,
    endpoint_log,
    files_digest,
    judge_and_log,
    window_request,
)
from mlflow_deploy_plugin.controller.monitors.schedule import window_from, windows_between
from mlflow_deploy_plugin.controller.monitors.scheduler import lease_name
from mlflow_deploy_plugin.controller.monitors.window_runner import (
    Attempts,
    WindowRunner,
    as_judged,
    unsaved_window,
    window_summary,
)
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.inference_log.reader import open_log
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.request import Engine, WindowRequest
from mlflow_deploy_plugin.monitoring.spool import wait_until_shipped
from mlflow_deploy_plugin.spec import CaptureSpec, EndpointSpec, MonitorSpec, empty_endpoint, load_specs
from mlflow_deploy_plugin.statedir import SPEC
from mlflow_deploy_plugin.store import Store, unknown_endpoint
from mlflow_deploy_plugin.store.monitors import Monitors, MonitorWindow

DEFAULT_MONITOR = "drift"


@dataclass(frozen=True)
class SelectedMonitor:
    """A monitor of an endpoint; one that the endpoint's spec does not have is made of the defaults.

    Attributes:
        capture: what the log withholds of the endpoint's columns.
        tried: bounds that stand in `spec` for once, as `min_rows=50`; what is found with them is not the monitor's.
    """

    endpoint: str
    name: str
    spec: MonitorSpec
    capture: CaptureSpec
    tried: str = ""

    def trying(self, **bounds: float | None) -> "SelectedMonitor":
        """The monitor with these fields of its spec; None: as it is."""
        given = {name: value for name, value in bounds.items() if value is not None}
        tried = ", ".join(f"{name}={value}" for name, value in given.items())
        return replace(self, spec=self.spec.model_copy(update=given), tried=tried)


def find_monitor(deployments: Deployments, endpoint: str, name: str | None) -> SelectedMonitor:
    """The monitor of this name; default: the endpoint's only one, or where it has none a daily one of drift.

    Raises:
        NotFound: there is no such endpoint or monitor.
        InvalidConfig: the endpoint has several, and none is named.
    """
    spec = _spec(deployments, endpoint)
    if name is None:
        if len(spec.monitors) > 1:
            raise InvalidConfig(
                f"endpoint {endpoint!r} has several monitors: say which, --monitor {' | '.join(sorted(spec.monitors))}"
            )
        name = next(iter(spec.monitors), DEFAULT_MONITOR)
    return SelectedMonitor(endpoint, name, spec.monitor(name) if spec.monitors else MonitorSpec(), spec.capture)


def _spec(deployments: Deployments, endpoint: str) -> EndpointSpec:
    """As it stands in the store, or as a server of this machine has left it; of what was only captured an empty one."""
    stored = deployments.store.endpoint(endpoint)
    if stored is not None:
        return stored.spec
    left = _left_by_a_server(deployments.settings.deployments_path / endpoint / SPEC, endpoint)
    if left is not None:
        return left
    captured = open_log(deployments.settings.inference_log).endpoints()
    if endpoint not in captured:
        raise unknown_endpoint(endpoint, {*captured, *(stored.name for stored in deployments.store.endpoints())})
    return empty_endpoint(endpoint)


def _left_by_a_server(file: Path, endpoint: str) -> EndpointSpec | None:
    try:
        specs = load_specs(file.read_text())
    except OSError:
        return None
    return next((spec for spec in specs if spec.name == endpoint), None)


_SHIPPING_SECONDS = 20.0
_LEASE_SECONDS = 15.0
PATIENCE_SECONDS = 60.0
"""How long a window that the controller is at is waited for."""
MAX_BACKFILLED = 10_000
"""Over a year of hours; each is a run in MLflow, and takes seconds."""
_SKETCHED = ("drift", "prediction_drift", "data_quality")
_NOT_SHIPPED = "some captured rows have not reached the inference log yet and are not judged"


def run_window(
    deployments: Deployments, monitor: SelectedMonitor, window: Window | None, judge: Judge, engine: Engine = "local"
) -> tuple[MonitorWindow, LoggedResult]:
    """Judges a window, by default the latest whole one of the monitor's length that has rows.

    A window that stands there already gets a further revision. What is found with other bounds than the monitor's
    stands in MLflow alone: the window that is given then is not in the store.

    Raises:
        InvalidConfig: Spark is asked for and does not help this kind of monitor.
        NotFound: the window has no rows.
        OnnxserveError: it cannot be judged; or the controller is at it.
    """
    if engine == "spark" and monitor.spec.kind not in _SKETCHED:
        raise InvalidConfig(f"--engine spark: monitors of {', '.join(_SKETCHED)} are sketched, not {monitor.spec.kind}")
    log = endpoint_log(deployments.settings, deployments.store.endpoint(monitor.endpoint))
    is_shipped = wait_until_shipped(deployments.settings.deployments_path / monitor.endpoint, _SHIPPING_SECONDS)
    now = deployments.store.now()
    window = window or log.latest_window(monitor.endpoint, monitor.spec.every, now)
    if not files_digest(log, monitor.endpoint, window):
        latest = log.latest_window(monitor.endpoint, monitor.spec.every, now)
        raise NotFound(
            f"endpoint {monitor.endpoint!r} has no captured rows in {window}; the latest whole window with rows is "
            f"{latest}"
        )
    answers: list[LoggedResult] = []

    def answer(question: WindowRequest) -> LoggedResult:
        answers.append(judge(replace(question, engine=engine)))
        return answers[-1]

    notes = () if is_shipped else (_NOT_SHIPPED,)
    if monitor.tried:
        return _try(deployments, monitor, window, answer, notes)
    with _held(deployments, monitor) as keeper:
        written = _written(deployments.store, monitor, window)
        taken = _attempts(deployments, monitor, answer).take(written, monitor.spec, keeper, notes)
    if taken is None:
        raise OnnxserveError("the lease of the monitor was lost while the window was judged: try again")
    if taken.state != "judged":
        raise OnnxserveError(taken.reason)
    return taken, answers[-1]


def _try(
    deployments: Deployments, monitor: SelectedMonitor, window: Window, judge: Judge, notes: Sequence[str]
) -> tuple[MonitorWindow, LoggedResult]:
    unwritten = unsaved_window(monitor.endpoint, monitor.name, window, deployments.store.now())
    notes = (*notes, f"judged with {monitor.tried} for once: in MLflow alone, no verdict of the monitor")
    endpoint = deployments.store.endpoint(monitor.endpoint)
    question = window_request(unwritten, monitor.spec, deployments.settings, endpoint, notes)
    answer = judge(replace(question, capture=monitor.capture, tried=monitor.tried))
    return as_judged(unwritten, answer, notes), answer


def backfill(
    deployments: Deployments, monitor: SelectedMonitor, begin: datetime, end: datetime, judge: Judge
) -> Iterator[tuple[int, int, MonitorWindow, bool]]:
    """Judges the monitor's windows in [begin, end), oldest first; those that are judged already are passed over.

    Yields:
        Number of the window from 1, how many there are, the window, and whether it was judged now.

    Raises:
        InvalidConfig: no whole window lies there, or more than `MOST_BACKFILLED`.
    """
    starts = _starts(monitor.spec, begin, end)
    monitors = Monitors(deployments.store)
    for number, start in enumerate(starts, 1):
        window = window_from(monitor.spec, start)
        judged = [one for one in _of_window(monitors, monitor, window) if one.state == "judged"]
        if judged:
            yield number, len(starts), judged[-1], False
            continue
        with _held(deployments, monitor) as keeper:
            written = _written(deployments.store, monitor, window)
            taken = _attempts(deployments, monitor, judge).take(written, monitor.spec, keeper)
        if taken is None:
            raise OnnxserveError("the lease of the monitor was lost while a window was judged: try again")
        yield number, len(starts), taken, True


def _starts(spec: MonitorSpec, begin: datetime, end: datetime) -> range:
    """Of the windows that a backfill of [begin, end) judges. Raises InvalidConfig."""
    starts = windows_between(spec, begin, end)
    if not starts:
        raise InvalidConfig(f"no whole window of {spec.every} lies between {begin:%F %R} and {end:%F %R} UTC")
    if len(starts) > MAX_BACKFILLED:
        last = window_from(spec, starts[MAX_BACKFILLED - 1]).end
        raise InvalidConfig(
            f"{len(starts):,} windows of {spec.every} lie between {begin:%F %R} and {end:%F %R} UTC, and one backfill "
            f"judges at most {MAX_BACKFILLED:,}: say --to {last.isoformat()[:19]}, or take a monitor of longer windows"
        )
    return starts


def run_due(deployments: Deployments, monitor: SelectedMonitor, say: Callable[[str], None]) -> Iterator[MonitorWindow]:
    """Judges every window of the monitor that is due, oldest first, as the controller would: who is to be told is told.

    For what starts a command at its own times, as a CronJob does, instead of a controller. A window whose attempt has
    failed ends it: it stands in the store, and the next call tries again. A call before that attempt's pause is over
    gives the window as it stands: a Job whose second pod finds nothing to try must not end well.

    Raises:
        NotFound: the endpoint is not in the store, or has no such monitor.
        OnnxserveError: the log cannot be read.
    """
    stored = deployments.store.endpoint(monitor.endpoint)
    if stored is None:
        raise NotFound(f"there is no endpoint {monitor.endpoint!r} in the store, which knows what is due")
    stored.spec.monitor(monitor.name)
    turns = WindowRunner(Attempts(deployments, judge_and_log, say), count_rows)
    while True:
        with _held(deployments, monitor) as keeper:
            taken = turns.take(monitor.endpoint, monitor.name, keeper)
            if taken == "nothing due" and turns.look_for_late(monitor.endpoint, monitor.name):
                continue
        if taken == "nothing due":
            for waiting in _to_be_tried_again(deployments.store, monitor):
                say(window_summary(waiting))
                yield waiting
        if taken is None or isinstance(taken, str):
            return
        yield taken
        if taken.state == "pending":
            return


def _to_be_tried_again(store: Store, monitor: SelectedMonitor) -> list[MonitorWindow]:
    """The window, if there is one, that the monitor waits to try again."""
    monitors = Monitors(store)
    if monitors.state(monitor.endpoint, monitor.name).paused:
        return []
    return monitors.windows(monitor.endpoint, monitor.name, states=("pending",), by_hand=False)[:1]


@contextmanager
def _held(deployments: Deployments, monitor: SelectedMonitor) -> Iterator[LeaseKeeper]:
    """Under the monitor's lease, which a controller has while it judges a window itself."""
    name, store = lease_name(monitor.endpoint, monitor.name), deployments.store
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (lease := store.acquire_lease(name, "by hand", _LEASE_SECONDS)) is None:
        if time.monotonic() > deadline:
            view = store.lease(name)
            raise OnnxserveError(
                f"a window of monitor {monitor.name!r} is being judged by {view.holder if view else 'somebody'}: "
                "try again later"
            )
        time.sleep(0.2)
    with LeaseKeeper(store, lease) as keeper:
        yield keeper


def _written(store: Store, monitor: SelectedMonitor, window: Window) -> MonitorWindow:
    """The revision that is to be judged: one that was asked for by hand and not judged, else a further one."""
    monitors = Monitors(store)
    asked_for = [one for one in _of_window(monitors, monitor, window) if one.by_hand and one.state != "judged"]
    if asked_for:
        return asked_for[-1]
    revision = monitors.next_revision(monitor.endpoint, monitor.name, window.start)
    return monitors.add(monitor.endpoint, monitor.name, window.start, window.end, revision, by_hand=True)


def _of_window(monitors: Monitors, monitor: SelectedMonitor, window: Window) -> list[MonitorWindow]:
    found = monitors.windows(monitor.endpoint, monitor.name, since=window.start)
    return [one for one in found if (one.start, one.end) == (window.start, window.end)]


def _attempts(deployments: Deployments, monitor: SelectedMonitor, judge: Judge) -> Attempts:
    """Those that ask as the monitor was found: the store may know nothing of it."""

    def as_found(question: WindowRequest) -> LoggedResult:
        return judge(replace(question, capture=monitor.capture))

    return Attempts(deployments, as_found, say=lambda line: None, by_hand=True)
