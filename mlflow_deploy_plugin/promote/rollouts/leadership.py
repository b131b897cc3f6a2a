"""Run tasks only while this process holds a lease of the store
(`core/store/leases.py`). Each task has its own thread.

The process that holds `STORE_LEASE` runs the monitors, alerts and retrainings of the
store.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

from prometheus_client import Gauge

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotReady,
    OnnxserveError,
    StoreUnavailable,
)
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.store import Endpoint, Store
from mlflow_deploy_plugin.ship.deployments.backends.targets import parse_target
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_log = logging.getLogger(__name__)

STORE_LEASE = "controller"
LEASE_SECONDS = 15.0
LEADS = Gauge(
    "onnxserve_controller_leads",
    "1 while this process holds the controllers' lease.",
    registry=None,
)
_FAILURE_SECONDS = 2.0
_LOOK_SECONDS = 0.2


def controller_name() -> str:
    return f"controller@{socket.gethostname()}"


def process_name() -> str:
    return f"{controller_name()} (process {os.getpid()})"


BackgroundTask = Callable[[LeaseKeeper, threading.Event], None]
"""A function that works in the background until the lease is lost or the event is set.
"""


def lead(
    store: Store,
    lease_name: str,
    role: str,
    tasks: Sequence[BackgroundTask],
    holder: str,
    lease_seconds: float,
    say: Callable[[str], None],
    ended: threading.Event,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Wait for the lease and run the tasks while it is held. Repeat this until `ended`
    is set.

    Args:
        role: what the holder does, for the line about a new holder.
        holder: the name of this process.
        lease_seconds: the time after which a lease that is not renewed expires.
        say: receives a line with the holder's name and `role` whenever the holder
            changes.
    """
    last_holder = ""
    while not ended.is_set():
        try:
            lease = store.acquire_lease(lease_name, holder, lease_seconds)
            view = store.lease(lease_name)
            has_lost_lease = lease is None and view is not None and view.holder == holder
            if view is not None and view.holder != last_holder and not has_lost_lease:
                last_holder = view.holder
                waiting = "" if last_holder == holder else "waiting: "
                say(f"{waiting}{last_holder} {role}")
            if lease is None:
                ended.wait(min(1.0, lease_seconds / 5))
                continue
            with LeaseKeeper(store, lease, monotonic) as keeper, running_tasks(tasks, keeper):
                while keeper.is_held and not ended.wait(_LOOK_SECONDS):
                    pass
            # Report the next holder of the lease, even if this process is the holder
            # again.
            last_holder = ""
        except (StoreUnavailable, OSError) as error:
            _log.warning("%s", error)
            ended.wait(_FAILURE_SECONDS)


def lead_store(
    store: Store,
    tasks: Sequence[BackgroundTask],
    holder: str,
    lease_seconds: float,
    say: Callable[[str], None],
    ended: threading.Event,
) -> None:
    """Run the tasks while this process is the controller of the store, and set the
    gauge `LEADS`. `say` receives a line whenever the holder of the lease changes.
    """

    def show_lead(_: LeaseKeeper, over: threading.Event) -> None:
        LEADS.set(1)
        over.wait()
        LEADS.set(0)

    lead(
        store,
        STORE_LEASE,
        "is the controller",
        [show_lead, *tasks],
        holder,
        lease_seconds,
        say,
        ended,
    )


@contextmanager
def running_tasks(tasks: Sequence[BackgroundTask], keeper: LeaseKeeper) -> Iterator[None]:
    """Run the tasks during the `with`. A failed task is restarted, because no other
    process may run it.
    """
    over = threading.Event()
    with ThreadPoolExecutor(max(len(tasks), 1), "background") as pool:
        for task in tasks:
            pool.submit(repeat(partial(task, keeper, over), _FAILURE_SECONDS), keeper, over)
        try:
            yield
        finally:
            over.set()


def repeat(function: Callable[[], object], seconds: float) -> BackgroundTask:
    """Return a task that calls the function repeatedly, with a pause of `seconds`, and
    logs errors of the function.
    """

    def work(keeper: LeaseKeeper, over: threading.Event) -> None:
        while keeper.is_held and not over.is_set():
            log_errors(function)
            over.wait(seconds)

    return work


def log_errors(function: Callable[[], object]) -> None:
    try:
        function()
    except OnnxserveError as error:
        _log.warning("%s", error.message)
    except Exception:  # noqa: BLE001 — a failed call must not prevent the next calls
        _log.exception("a task of the controller failed and will be repeated")


def rollouts_lease_name(location: str) -> str:
    """Return the name of the lease for the rollouts at a location
    (`Deployments.place`), held by one controller.
    """
    return f"rollouts/{location}"


def reached_places(
    deployments: Deployments,
    fail: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Yield each location whose servers this process can reach, with a text that names
    the servers.

    Endpoints on other machines are skipped. `fail` is called with a line for each
    target that fails. This machine comes first, because an unavailable cluster delays
    the next location until a timeout.
    """
    reached: set[str] = set()
    failures: dict[str, str] = {}
    for endpoint in sorted(deployments.store.endpoints(), key=_is_elsewhere):
        target = endpoint.target
        if target in reached:
            continue
        try:
            location = deployments.place(endpoint.name)
        except NotReady:
            continue
        except OnnxserveError as error:
            failures[target] = (
                f"rollouts of {target} are left to other controllers: {error.message}"
            )
            continue
        reached.add(target)
        servers = target if _is_elsewhere(endpoint) else "the servers here"
        yield location, servers
    for target, line in failures.items():
        if target not in reached:
            fail(line)


def _is_elsewhere(stored: Endpoint) -> bool:
    with suppress(InvalidConfig):  # A target of another version of onnxserve may not be supported.
        return not parse_target(stored.target).is_on_this_machine
    return True


def reaches(deployments: Deployments, endpoint: str, place: str | None = None) -> bool:
    """Return True if this process can reach the endpoint's server, and the server is at
    `place` if `place` is set.
    """
    try:
        return place in (None, deployments.place(endpoint))
    except OnnxserveError:
        return False
