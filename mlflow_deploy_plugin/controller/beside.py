"""What the controller does beside its rollouts, under the same lease: each in a thread of its own, again and again."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mlflow_deploy_plugin.controller.lease import LeaseKeeper
from mlflow_deploy_plugin.errors import OnnxserveError

_log = logging.getLogger(__name__)

Beside = Callable[[LeaseKeeper, threading.Event], None]
"""Works until the lease is lost or the event is set."""


@contextmanager
def running(works: Sequence[Beside], keeper: LeaseKeeper) -> Iterator[None]:
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


def repeatedly(look: Callable[[], object], seconds: float) -> Beside:
    """`look` again and again with a pause; what it raises is logged and ends nothing."""

    def work(keeper: LeaseKeeper, over: threading.Event) -> None:
        while keeper.is_held and not over.is_set():
            safely(look)
            over.wait(seconds)

    return work


def safely(look: Callable[[], object]) -> None:
    """Calls it, and logs what it raises."""
    try:
        look()
    except OnnxserveError as error:
        _log.warning("%s", error.message)
    except Exception:  # noqa: BLE001 — one look must not end the next ones
        _log.exception("the controller goes on; something it does beside its rollouts has failed")
