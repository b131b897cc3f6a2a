"""Leases: at most one holder of a name at a time, among processes and machines that share the store.

A contender never compares a time in the store with its own wall clock, which may jump or differ. It takes a lease over
once it has itself seen it, unrenewed, for the lease's whole length by its own monotonic clock (the way of DynamoDB's
lock client; Gray and Cheriton 1989 for leases). A holder counts its lease from before it asked for it, likewise by the
monotonic clock, so it stops believing in it before another can have it. Each taking has a higher token than the one
before, and what is written under a lease is refused with an old token: a holder that slept through its lease does no
harm.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from mlflow_deploy_plugin.store.tables import LeaseRow


@dataclass(frozen=True)
class Lease:
    """A lease as its holder has it: valid while its own monotonic clock is below `until`."""

    name: str
    holder: str
    token: int
    seconds: float
    until: float


@dataclass(frozen=True)
class LeaseView:
    """A lease as others see it; `expires_at` is for people, and by the clock of the holder's machine."""

    name: str
    holder: str
    expires_at: datetime


@dataclass(frozen=True)
class Sighting:
    """A lease of another holder as it was seen, and when it was first seen so (monotonic)."""

    token: int
    renewals: int
    at: float


def acquire(
    session: Session, name: str, holder: str, seconds: float, seen: Sighting | None, now: datetime, monotonic: float
) -> Lease | Sighting:
    """Return the lease, or the sighting of another's lease, which the next attempt takes as `seen`."""
    row = session.get(LeaseRow, name, with_for_update=True)
    if row is None:
        row = LeaseRow(name=name, holder="", token=0, renewals=0, seconds=seconds, expires_at=now)
        session.add(row)
    elif row.holder:
        is_unchanged = seen is not None and (seen.token, seen.renewals) == (row.token, row.renewals)
        sighting = seen if seen is not None and is_unchanged else Sighting(row.token, row.renewals, monotonic)
        if monotonic - sighting.at < row.seconds:
            return sighting
    row.holder, row.token, row.renewals, row.seconds = holder, row.token + 1, 0, seconds
    row.expires_at = now + timedelta(seconds=seconds)
    session.flush()
    return Lease(name, holder, row.token, seconds, monotonic + seconds)


def held_row(session: Session, lease: Lease) -> LeaseRow | None:
    """Return the lease's row, locked, if nobody has taken the lease since; else None.

    What this transaction writes is then written under the lease.
    """
    row = session.get(LeaseRow, lease.name, with_for_update=True)
    return row if row is not None and row.token == lease.token and row.holder else None
