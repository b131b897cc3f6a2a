"""What callers say of earlier predictions, and its form in the spool: one frame a request, beside those of answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

Value = str | int | float | bool | None


class Feedback(NamedTuple):
    """What turned out to be true of one row, or of all rows of a request.

    Attributes:
        prediction_id: as the answer said it; None: `key` names the row.
        row: of that request, from 0; None: all.
        key: values of the row's columns by name.
        label: None takes an earlier one back.
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
        offset: of the frame in its segment, with the segment's name what tells doubles.
    """

    endpoint: str
    received_time: int
    entries: tuple[Feedback, ...]
    offset: int = 0


def encode_feedback(endpoint: str, received_time: int, entries: Sequence[Feedback]) -> bytes:
    """A frame's payload without its kind."""
    return orjson.dumps([endpoint, received_time, [tuple(entry) for entry in entries]])


def decode_feedback(packed: bytes | memoryview, offset: int) -> FeedbackFrame:
    """What `pack_feedback` gave.

    Raises:
        ValueError, TypeError: it is something else.
    """
    said: list[Any] = orjson.loads(packed)
    endpoint, received_time, entries = said
    return FeedbackFrame(endpoint, received_time, tuple(Feedback(*entry) for entry in entries), offset)
