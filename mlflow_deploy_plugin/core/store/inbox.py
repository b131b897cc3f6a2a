"""The inbox of an observed endpoint: the requests and responses that another server has
pushed, until the endpoint's pass has written them to the inference log.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, delete, func, or_, select

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import InboxRow

MOST_EXCHANGES = 100_000
MOST_BYTES = 128 * 1024**2
"""The limits of an endpoint's inbox, which also bound the memory of a pass."""
_AGAIN_SECONDS = 60

Part = Literal["request", "response"]


@dataclass(frozen=True)
class PushedEvent:
    """A request, or its response, with the same `id`. `time` has a time zone."""

    id: str
    part: Part
    time: datetime
    content_type: str
    body: bytes


@dataclass(frozen=True)
class PushedExchange:
    """A request and its response. `time` is the time of the earlier event.

    Attributes:
        request_type / response_type: the content types of the two bodies; may be empty.
        conflicts: the number of later events with this id and another body. The first
            body was kept.
    """

    id: str
    time: datetime
    request: bytes
    response: bytes
    request_type: str
    response_type: str
    conflicts: int


def add_events(store: Store, endpoint: str, events: Sequence[PushedEvent]) -> None:
    """Store all events, or none. A repeated event is kept once; if its body differs,
    the first body is kept, and the event is counted as a conflict.

    Raises TooManyRequests if the inbox of the endpoint is full, and StoreUnavailable.
    """
    of_endpoint = InboxRow.endpoint == endpoint
    has_id = InboxRow.id.in_({event.id for event in events})
    now = store.now()
    with store.transaction(alone_with=f"inbox of {endpoint}") as session:
        stored = session.scalars(select(InboxRow).where(of_endpoint, has_id))
        rows = {row.id: row for row in stored}
        for event in events:
            row = rows.get(event.id)
            if row is None:
                row = InboxRow(endpoint=endpoint, id=event.id, time=event.time, received_at=now)
                row.size = row.conflicts = 0
                rows[event.id] = row
                session.add(row)
            body = getattr(row, event.part)
            if body is None:
                setattr(row, event.part, event.body)
                setattr(row, f"{event.part}_type", event.content_type)
                row.time = min(row.time, event.time)
                row.size = row.size + len(event.body)
            elif body != event.body:
                row.conflicts = row.conflicts + 1
        session.flush()
        used = select(func.count(), func.sum(InboxRow.size)).where(of_endpoint)
        count, size = session.execute(used).one()
        if events and (count > MOST_EXCHANGES or size > MOST_BYTES):
            raise TooManyRequests(
                f"the inbox of endpoint {endpoint!r} is full ({MOST_EXCHANGES:,} requests or "
                f"{MOST_BYTES // 1024**2} MiB): check that `onnxserve controller` runs",
                _AGAIN_SECONDS,
            )


def exchanges(store: Store, endpoint: str, limit: int) -> list[PushedExchange]:
    """Return at most `limit` requests with their responses, in the order of arrival."""
    query = select(InboxRow).where(
        InboxRow.endpoint == endpoint,
        InboxRow.request.is_not(None),
        InboxRow.response.is_not(None),
    )
    return store.read(query.order_by(InboxRow.number).limit(limit), PushedExchange)


def remove(store: Store, endpoint: str, ids: Collection[str]) -> None:
    """Delete the events with these ids, which are in the inference log now."""
    with store.transaction() as session:
        listed = InboxRow.id.in_(ids)
        session.execute(delete(InboxRow).where(InboxRow.endpoint == endpoint, listed))


def unanswered(store: Store, endpoint: str, before: datetime) -> tuple[int, str]:
    """Return the number of requests without a response that were received before this
    time, and the id of one of them; empty if there are none.
    """
    count_and_id = select(func.count(), func.coalesce(func.min(InboxRow.id), ""))
    with store.reading() as session:
        is_old = _is_old(endpoint, before)
        query = count_and_id.where(*is_old, InboxRow.response.is_(None))
        count, example = session.execute(query).one()
    return count, example


def drop_unanswered(store: Store, endpoint: str, before: datetime) -> None:
    """Delete the requests of `unanswered`, and responses of this age without a request,
    such as repeated responses whose exchange was removed.
    """
    is_half = or_(InboxRow.request.is_(None), InboxRow.response.is_(None))
    with store.transaction() as session:
        session.execute(delete(InboxRow).where(*_is_old(endpoint, before), is_half))


def _is_old(endpoint: str, before: datetime) -> tuple[ColumnElement[bool], ...]:
    return InboxRow.endpoint == endpoint, InboxRow.received_at < before
