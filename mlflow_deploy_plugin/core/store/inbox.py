"""The inbox of an observed endpoint: the requests and responses that another server has
pushed, until the endpoint's pass has written them to the inference log.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import InboxRow

MOST_BYTES = 128 * 1024**2
"""The limit of an endpoint's inbox, which also bounds the memory of a pass."""
_ROW_BYTES = 1024
"""The size of an exchange without its bodies, so that the number of small ones is
limited too.
"""
_AGAIN_SECONDS = 60
_IDS_AT_ONCE = 10_000
"""The limit of ids in one statement; SQLite accepts 32,766."""
_IS_COMPLETE = InboxRow.request.is_not(None) & InboxRow.response.is_not(None)


@dataclass(frozen=True)
class PushedEvent:
    """The body of a `request` or a `response`, with the same `id`. `time` has a time
    zone.
    """

    id: str
    part: str
    time: datetime
    body: bytes


@dataclass(frozen=True)
class PushedExchange:
    """A request and its response. `time` is the time of the earlier event. `conflicts`
    is the number of later events with this id and another body; the first body was
    kept.
    """

    id: str
    time: datetime
    request: bytes
    response: bytes
    conflicts: int


def add_events(store: Store, endpoint: str, events: Sequence[PushedEvent]) -> None:
    """Store all events, or none. A repeated event is kept once; if its body differs,
    the first body is kept, and the event is counted as a conflict.

    Raises TooManyRequests if the inbox of the endpoint is full, and StoreUnavailable.
    """
    of_endpoint = select(InboxRow).where(InboxRow.endpoint == endpoint).with_for_update()
    now = store.now()
    rows: dict[str, InboxRow] = {}  # A row with large bodies is read once.
    with store.transaction(alone_with=f"inbox of {endpoint}") as session:
        for event in events:
            row = rows.get(event.id) or session.scalar(of_endpoint.where(InboxRow.id == event.id))
            if row is None:
                row = InboxRow(endpoint=endpoint, id=event.id, time=event.time, received_at=now)
                row.size = _ROW_BYTES
                row.conflicts = 0
                session.add(row)
            rows[event.id] = row
            body = getattr(row, event.part)
            if body is None:
                setattr(row, event.part, event.body)
                row.time = min(row.time, event.time)
                row.size += len(event.body)
            elif body != event.body:
                row.conflicts += 1
        if _used_bytes(session, endpoint) > MOST_BYTES:
            raise TooManyRequests(
                f"the inbox of endpoint {endpoint!r} is full ({MOST_BYTES // 1024**2} MiB): check "
                "that `onnxserve controller` runs",
                _AGAIN_SECONDS,
            )


def is_half_full(store: Store, endpoint: str) -> bool:
    with store.reading() as session:
        return _used_bytes(session, endpoint) > MOST_BYTES / 2


def _used_bytes(session: Session, endpoint: str) -> int:
    sizes = select(func.sum(InboxRow.size)).where(InboxRow.endpoint == endpoint)
    return session.scalar(sizes) or 0


def exchanges(store: Store, endpoint: str) -> list[PushedExchange]:
    """Return the first requests with their responses, in the order of arrival; empty if
    there are none.
    """
    query = select(InboxRow).where(InboxRow.endpoint == endpoint, _IS_COMPLETE)
    return store.read(query.order_by(InboxRow.number).limit(_IDS_AT_ONCE), PushedExchange)


def remove(store: Store, endpoint: str, ids: Collection[str]) -> None:
    """Delete the exchanges with these ids, which are in the inference log now."""
    with store.transaction() as session:
        session.execute(delete(InboxRow).where(InboxRow.endpoint == endpoint, InboxRow.id.in_(ids)))


def take_unanswered(store: Store, endpoint: str, before: datetime) -> list[str]:
    """Delete the requests without a response, and the responses without a request, that
    were received before this time. Return their ids.
    """
    is_late = InboxRow.received_at < before
    deleted = delete(InboxRow).where(InboxRow.endpoint == endpoint, is_late, ~_IS_COMPLETE)
    with store.transaction() as session:
        return [*session.scalars(deleted.returning(InboxRow.id))]
