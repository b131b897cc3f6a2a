"""Waiting for a lease, and holding it while something long is done: a thread renews it, and says when it is lost."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from mlflow_deploy_plugin.errors import OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.store import Lease, Store


def controller_name() -> str:
    return f"controller@{socket.gethostname()}"


def process_name() -> str:
    return f"{controller_name()} (process {os.getpid()})"


_log = logging.getLogger(__name__)

_FAILURE_SECONDS = 2.0


class LeaseKeeper:
    """Keeps a lease for as long as the `with` lasts, and gives it back then.

    Without an answer of the store it is lost when its length has passed; nothing brings it back.
    """

    def __init__(self, store: Store, lease: Lease, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.lease = lease
        self._store = store
        self._monotonic = monotonic
        self._ended = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self.is_held:
            try:
                self._store.release_lease(self.lease)
            except StoreUnavailable as unavailable:  # the next one waits for its length
                _log.warning("the lease %s is not given back: %s", self.lease.name, unavailable.message)

    @property
    def is_held(self) -> bool:
        return not self._is_lost and self._monotonic() < self.lease.until

    def _renew(self) -> None:
        while not self._ended.wait(self.lease.seconds / 4) and not self._is_lost:
            try:
                renewed = self._store.renew_lease(self.lease) if self.is_held else None
            except StoreUnavailable as error:
                _log.warning("the lease %s cannot be renewed: %s", self.lease.name, error.message)
                continue
            if renewed is None:
                self._is_lost = True
                _log.warning("the lease %s is lost", self.lease.name)
            else:
                self.lease = renewed


def work_under_lease(
    store: Store,
    name: Callable[[], str],
    holder: str,
    seconds: float,
    work: Callable[[LeaseKeeper], None],
    ended: threading.Event,
    say: Callable[[str], None],
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Works under a lease, again and again until `ended` is set; while another has it, waits.

    Args:
        name: of the lease; empty while there is nothing that it would be for.
        say: is told who has it, when that is another one than before.
    """
    told = ""
    while not ended.is_set():
        try:
            wanted = name()
            lease = store.acquire_lease(wanted, holder, seconds) if wanted else None
            view = store.lease(wanted) if wanted else None
            if view is not None and view.holder != told:
                told = view.holder
                say(told)
            if lease is None:
                ended.wait(min(1.0, seconds / 5))
            else:
                with LeaseKeeper(store, lease, monotonic) as keeper:
                    work(keeper)
        except (StoreUnavailable, OSError) as error:
            _log.warning("%s", error)
            ended.wait(_FAILURE_SECONDS)


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
