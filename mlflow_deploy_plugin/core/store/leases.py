"""Leases: at most one process holds a lease of a given name, among all processes and
machines that share the store.

No time in the store is compared with a wall clock, because wall clocks jump and differ.
A process takes over a lease after it has observed, by its own monotonic clock, no
renewal for the lease's duration (like DynamoDB's lock client; Gray and Cheriton 1989).
A holder measures the duration from before its request, so the holder stops before
another process can take over. Each acquisition has a new token, and a write with an old
token is rejected. A holder that was suspended until its lease expired can therefore do
no harm.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import StoreUnavailable
from mlflow_deploy_plugin.core.store.audit import current_actor
from mlflow_deploy_plugin.core.store.tables import LeaseRow
from mlflow_deploy_plugin.core.store.transactions import Transactions

_log = logging.getLogger(__name__)

_LEASE_SECONDS = 15.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Lease:
    """A lease as its holder sees it. The lease is valid while the holder's monotonic
    clock is below `until`.
    """

    name: str
    holder: str
    token: int
    seconds: float
    until: float


@dataclass(frozen=True)
class LeaseView:
    """A lease as other processes than its holder see it. `expires_at` and `is_current`
    are only for display.
    """

    name: str
    holder: str
    expires_at: datetime
    is_current: bool


def held_row(session: Session, lease: Lease) -> LeaseRow | None:
    """Return the lease's row, locked for this transaction; None if another process has
    taken the lease.
    """
    row = session.get(LeaseRow, lease.name, with_for_update=True)
    if row is not None and row.token == lease.token:
        return row
    return None


class Leases(Transactions):
    """The leases in a database."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        """Lease name → the last seen token and renewals of another holder, and the time
        when they were first seen.
        """

    def acquire_lease(self, name: str, holder: str, seconds: float) -> Lease | None:
        """Return the lease of this name, or None while another process holds it.

        Repeat the call to take over from a killed holder: the lease is free if no
        renewal is seen for its duration.
        """
        monotonic = self._monotonic()
        try:
            with self.transaction() as session:
                row = session.get(LeaseRow, name, with_for_update=True)
                if row is None:
                    row = LeaseRow(name=name)
                    session.add(row)
                else:
                    # This process remembers since when it has seen the lease without a
                    # renewal.
                    current = (row.token, row.renewals)
                    seen, since = self._seen.get(name, (current, monotonic))
                    if seen != current:
                        since = monotonic
                    self._seen[name] = (current, since)
                    if monotonic - since < row.seconds:
                        return None
                row.holder = holder
                row.token = secrets.randbits(62)
                row.renewals = 0
                row.seconds = seconds
                row.expires_at = self.shared_now() + timedelta(seconds=seconds)
                session.flush()
                self._seen.pop(name, None)
                return Lease(name, holder, row.token, seconds, monotonic + seconds)
        except IntegrityError:  # Another process has taken the lease at the same time.
            return None

    def renew_lease(self, lease: Lease) -> Lease | None:
        """Return the lease, renewed for its duration from now; None if the lease was
        lost.
        """
        monotonic = self._monotonic()
        with self.transaction() as session:
            row = held_row(session, lease)
            if row is None:
                return None
            row.renewals += 1
            row.expires_at = self.shared_now() + timedelta(seconds=lease.seconds)
            return replace(lease, until=monotonic + lease.seconds)

    def release_lease(self, lease: Lease) -> None:
        """Release the lease so that another process can take it immediately. If the
        lease is lost, do nothing.
        """
        with self.transaction() as session:
            if (row := held_row(session, lease)) is not None:
                session.delete(row)

    def lease(self, name: str) -> LeaseView | None:
        """Return the lease from the view of other processes; None if the lease is
        free.
        """
        with self.reading() as session:
            columns = (
                LeaseRow.name,
                LeaseRow.holder,
                LeaseRow.expires_at,
                LeaseRow.expires_at > self.shared_now(),
            )
            row = session.execute(select(*columns).where(LeaseRow.name == name)).one_or_none()
            return None if row is None else LeaseView(*row)


class LeaseKeeper:
    """Renews a lease during the `with`, and releases it at the end.

    If the store does not answer, the lease is lost after its duration. A lost lease
    cannot be regained.
    """

    def __init__(
        self,
        store: Leases,
        lease: Lease,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease = lease
        self._store = store
        self._monotonic = monotonic
        self._ended = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self.is_held:
            try:
                self._store.release_lease(self.lease)
            except StoreUnavailable as unavailable:  # The lease ends later, after its duration.
                _log.warning(
                    "the lease %s cannot be released: %s",
                    self.lease.name,
                    unavailable.message,
                )

    @property
    def is_held(self) -> bool:
        return not self._is_lost and self._monotonic() < self.lease.until

    def _renew(self) -> None:
        """Renew the lease four times per duration until it ends or is lost."""
        while not self._ended.wait(self.lease.seconds / 4) and not self._is_lost:
            try:
                renewed = self._store.renew_lease(self.lease) if self.is_held else None
            except StoreUnavailable as error:
                _log.warning("the lease %s cannot be renewed: %s", self.lease.name, error.message)
                continue
            if renewed is None:
                self._is_lost = True
                _log.warning("the lease %s was lost", self.lease.name)
            else:
                self.lease = renewed


@contextmanager
def held_lease(
    store: Leases,
    name: str,
    waits_for: Callable[[str], None],
) -> Iterator[LeaseKeeper]:
    """Wait for a lease, and hold it during the `with`.

    `waits_for` is called with the holder's name five times per second. An error in
    `waits_for` stops the wait.
    """
    this = f"{current_actor()} (process {os.getpid()})"
    while (lease := store.acquire_lease(name, this, _LEASE_SECONDS)) is None:
        if (view := store.lease(name)) is not None:
            waits_for(view.holder)
        time.sleep(_LOOK_SECONDS)
    with LeaseKeeper(store, lease) as keeper:
        yield keeper
