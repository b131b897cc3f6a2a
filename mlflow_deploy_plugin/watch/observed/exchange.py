"""A request and its response, as another server has logged them. The functions that
plug in at `onnxserve.sources` read it from a record (docs/extend.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Exchange:
    """A request of N rows with its predictions.

    Attributes:
        id: identifies the request; labels and repeated records are matched by it.
        time: the event time, with a time zone.
        inputs: column → N values.
        predictions: `prediction`, or `output.NAME` → N values.
        version: the version that answered; empty if the record does not have it.
    """

    id: str
    time: datetime
    inputs: Mapping[str, Sequence[Any]]
    predictions: Mapping[str, Sequence[Any]]
    version: str = ""


ReadExchange = Callable[[Mapping[str, Any], Sequence[str]], Exchange | None]
"""A function of a record and of the names of the model's inputs, in order (empty if
they are unknown), which name the values of a body without names. It returns None for a
record without a prediction, such as a request that failed; such records are left out
and counted. It raises InvalidRequest, with the reason, for a record that it cannot
read.
"""
