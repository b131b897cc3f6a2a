"""What is done under a lease, each in a thread of its own, again and again; and what one controller of a store does
under its one, wherever it runs: monitors, alerts, retrainings.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mlflow_deploy_plugin.controller.leadership import LeaseKeeper, work_under_lease
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.store import Store

_log = logging.getLogger(__name__)

STORE_LEASE = "controller"
LEASE_SECONDS = 15.0
_LOOK_SECONDS = 0.2
BackgroundTask = Callable[[LeaseKeeper, threading.Event], None]
"""Works until the lease is lost or the event is set."""


@contextmanager
def running_tasks(works: Sequence[BackgroundTask], keeper: LeaseKeeper) -> Iterator[None]:
    """Runs them for as long as the `with` lasts."""
    over = threading.Event()
    threads = [threading.Thread(target=work, args=(keeper, over), name="beside") for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def lead_store(
    store: Store,
    works: Sequence[BackgroundTask],
    holder: str,
    lease_seconds: float,
    say: Callable[[str], None],
    ended: threading.Event,
) -> None:
    """Waits for the store's lease, and does these under it until `ended` is set."""

    def work(keeper: LeaseKeeper) -> None:
        with running_tasks(works, keeper):
            while keeper.is_held and not ended.wait(_LOOK_SECONDS):
                pass

    def who(name: str) -> None:
        say(f"{name} is the controller" if name == holder else f"waits: {name} is the controller")

    work_under_lease(store, lambda: STORE_LEASE, holder, lease_seconds, work, ended, who)


def repeat(look: Callable[[], object], seconds: float) -> BackgroundTask:
    """`look` again and again with a pause; what it raises is logged and ends nothing."""

    def work(keeper: LeaseKeeper, over: threading.Event) -> None:
        while keeper.is_held and not over.is_set():
            log_errors(look)
            over.wait(seconds)

    return work


def log_errors(look: Callable[[], object]) -> None:
    """Calls it, and logs what it raises."""
    try:
        look()
    except OnnxserveError as error:
        _log.warning("%s", error.message)
    except Exception:  # noqa: BLE001 — one look must not end the next ones
        _log.exception("the controller goes on; something that it does has failed")
