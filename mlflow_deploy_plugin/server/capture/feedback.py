"""Labels that callers report for earlier predictions, and their form in the spool: one frame a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

Value = str | int | float | bool | None


class Feedback(NamedTuple):
    """The true label of one row, or of all rows of a request.

    Attributes:
        prediction_id: of the response; None if `key` names the row.
        row: of that request, from 0; None for all rows.
        key: values of the row's columns by name.
        label: None withdraws an earlier label.
    """

    prediction_id: str | None
    row: int | None
    key: Mapping[str, Value] | None
    label: Value


@dataclass(frozen=True)
class FeedbackFrame:
    """The feedback of one request.

    Attributes:
        received_time: microseconds since 1970 (UTC).
        offset: of the frame in its segment; with the segment's name it identifies duplicates.
    """

    endpoint: str
    received_time: int
    entries: tuple[Feedback, ...]
    offset: int = 0


def encode_feedback(endpoint: str, received_time: int, entries: Sequence[Feedback]) -> bytes:
    """Return the payload of a frame, without its kind."""
    return orjson.dumps([endpoint, received_time, [tuple(entry) for entry in entries]])


def decode_feedback(payload: bytes | memoryview, offset: int) -> FeedbackFrame:
    """Reverse `encode_feedback`.

    Raises:
        ValueError, TypeError: the payload is malformed.
    """
    fields: list[Any] = orjson.loads(payload)
    endpoint, received_time, entries = fields
    return FeedbackFrame(endpoint, received_time, tuple(Feedback(*entry) for entry in entries), offset)
