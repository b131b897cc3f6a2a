"""Holding a lease while something long is done: a thread renews it, and says when it is lost."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from mlflow_deploy_plugin.errors import StoreUnavailable
from mlflow_deploy_plugin.store import Lease, Store

_log = logging.getLogger(__name__)


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
