"""A store whose clock the test sets, an inference log, and a scheduler with a fake
judge.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorWindow
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from mlflow_deploy_plugin.serve.inference_log.stats import Watermark, write_watermark
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors.evaluation import Evaluator, count_labels, count_rows
from mlflow_deploy_plugin.watch.monitors.scheduler import MonitorScheduler
from mlflow_deploy_plugin.watch.result import MonitorResult, WindowRequest
from tests.support.inference_log import LogWriter
from tests.support.waiting import wait_until

SECONDS = 60.0
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DUE = NOON + HOUR + timedelta(minutes=6)  # The grace of the window from NOON is over.


def judged_window(
    store,
    endpoint,
    monitor,
    start,
    verdict,
    run_id,
    reason="",
):
    """Store a day that was judged."""
    window = Monitors(store).add(endpoint, monitor, start, start + timedelta(days=1))
    judged = replace(window, state="judged", verdict=verdict, reason=reason, run_id=run_id)
    assert Monitors(store).update(judged) is not None


@dataclass
class MonitoredWorld:
    """A store with functions to prepare and check it.

    Attributes:
        now: the time of the store's clock.
        judge: the result for a window: a state, or an exception that is raised.
        asked: the windows that the scheduler asked the judge about, in order.
    """

    folder: Path
    now: datetime = NOON
    judge: Callable[[WindowRequest], str] = lambda asked: "no drift"
    asked: list[WindowRequest] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    looks: int = 0
    threads: list[tuple[threading.Thread, threading.Event]] = field(default_factory=list)

    def __post_init__(self):
        self.settings = Settings(home=self.folder)
        self.store = self.open_store()
        self.monitors = Monitors(self.store)
        self.writer = LogWriter(Path(self.settings.inference_log))

    def open_store(self):
        def clock():
            self.looks += 1
            return self.now

        return open_store(self.settings.store_url, clock)

    def endpoint(self, name="flights", **monitors):
        """Add an endpoint with these monitors, by default an hourly one."""
        self.store.add_endpoint("onnxserve", self.spec(name, **monitors))

    def spoil(self, name="flights"):
        """Replace the endpoint's spec by a spec with fields of another version of
        onnxserve.
        """
        with self.store.transaction() as session:
            row = session.get(EndpointRow, name)
            assert row is not None
            row.spec += "sampling: often\n"

    def spec(self, name="flights", **monitors):
        fields = {
            f"monitors.{monitor}.{field}": value
            for monitor, options in (monitors or {"hourly": {}}).items()
            for field, value in {"every": "1h", **options}.items()
        }
        return apply_config(new_endpoint(name, "models:/flight-delay/1"), fields)

    def rows(self, *hours, endpoint="flights", rows=3):
        """Write rows into the first seconds of these hours."""
        for hour in hours:
            times = [hour + timedelta(seconds=second) for second in range(rows)]
            self.writer.write({"_event_time": times, "x": [1.0] * rows}, endpoint=endpoint)

    def due(self, **monitors):
        """Add an endpoint as `endpoint` does, and rows for the hour from NOON, which is
        due.
        """
        self.endpoint("flights", **monitors)
        self.rows(NOON)
        self.now = DUE

    def watermark(self, complete_until, agent="one", **fields):
        mark = Watermark(
            agent, ("flights",), complete_until, fields.pop("written_at", self.now), **fields
        )
        write_watermark(locate_log(self.settings.inference_log), mark)

    def answer(self, asked):
        self.asked.append(asked)
        state: Any = self.judge(asked)
        run = LoggedRun(f"run-{len(self.asked)}", "onnxserve/flights", "")
        rows = count_rows(asked)
        kind = asked.spec.kind
        labels = count_labels([asked])[0] if kind == "performance" else None
        figures = (
            {}
            if labels is None
            else {"labelled_rows": float(labels), "labelled_share": labels / max(rows, 1)}
        )
        return MonitorResult(
            endpoint=asked.endpoint,
            monitor=asked.monitor,
            kind=kind,
            model="flight-delay",
            version="1",
            model_id="",
            window=asked.window,
            revision=asked.revision,
            state=state,
            reason="",
            rows=rows,
            figures=figures,
            log_rows=rows,
            run=run,
        )

    def start(self, store=None, lease_seconds=15, **more):
        """Run a scheduler during the test. The yielded event stops it; otherwise it
        stops at the end of the test.
        """
        store = store or self.store
        deployments = Deployments(store, self.settings, self.said.append)
        evaluator = Evaluator(self.answer, more.pop("count", count_rows))
        options: dict[str, Any] = {"evaluator": evaluator, "look_seconds": 0.1}
        options |= {"lease_seconds": lease_seconds, **more}
        scheduler = MonitorScheduler(deployments, "the test", **options)
        lease = store.acquire_lease(f"lease-{len(self.threads)}", "the test", lease_seconds)
        assert lease is not None
        over = threading.Event()

        def work():
            with LeaseKeeper(store, lease) as keeper:
                scheduler.run(keeper, over)

        thread = threading.Thread(target=work)
        thread.start()
        self.threads.append((thread, over))
        return over

    def count_looks(self):
        """Return a function that counts the reads of the clock since this call. A
        scheduler reads the clock in each poll.
        """
        before = self.looks
        return lambda: self.looks - before

    def wait_for_attempt(self, number, monitor=None):
        """Wait until the attempt with this number has failed, and return its window."""

        def found():
            windows = self.monitors.windows(monitor=monitor, states=("pending",))
            return next((candidate for candidate in windows if candidate.attempts == number), None)

        window: MonitorWindow = wait_until(found, SECONDS, f"attempt {number} has failed")
        return window

    def end(self):
        for thread, over in self.threads:
            over.set()
            thread.join(SECONDS)
        self.threads.clear()

    def wait_for(self, count, monitor=None, state="judged"):
        """Wait until this number of windows are in this state, and return these
        windows.
        """

        def found():
            windows = [
                window for window in self.monitors.windows(monitor=monitor) if window.state == state
            ]
            return windows if len(windows) >= count else []

        windows: list[MonitorWindow] = wait_until(found, SECONDS, f"{count} windows are {state}")
        return windows
