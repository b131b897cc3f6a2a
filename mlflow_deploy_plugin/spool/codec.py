"""One captured request as bytes; and feedback, the labels that callers report for earlier predictions.

Requests of one kind share a layout, which is written once: JSON that names the arrays in order, with their dtypes and
the shape of a row. A request is a head of fixed size, both ids, and the arrays: numbers as they lie in memory, strings
as JSON after its length. A plan for each kind reduces a request to a comparison and one copy per array.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import orjson

from mlflow_deploy_plugin.runtime.feeds import Array, Dtype, as_table
from mlflow_deploy_plugin.spool.captured_model import CapturedModel, ColumnMask, Value, decode_model
from mlflow_deploy_plugin.spool.frames import REFERRING

FIRST_ERROR_STATUS = 400
"""A request with this status or a higher one got no prediction."""
_HEAD = struct.Struct("<IqqIHHH")  # rows, event time, received time, latency, status, lengths of both ids
_TEXT_LENGTH = struct.Struct("<I")
_MAX_LATENCY = 2**32 - 1
_MAX_PLANS = 256
"""The most plans that are kept; a further plan empties the cache."""
Layout = dict[str, Any]
_form: Callable[[Array], tuple[tuple[int, ...], Dtype]] = attrgetter("shape", "dtype")


class RequestRecord(NamedTuple):
    """One request without its arrays; times in microseconds since 1970 (UTC), ids below 64 kB.

    A named tuple, because one is made for each request: a frozen dataclass takes three times as long.

    Attributes:
        latency: microseconds from the request's arrival to the model's outputs; for a shadow, those of its run.
        status: HTTP's, of the response.
        is_shadow: the variant has computed a copy whose outputs are not sent.
    """

    endpoint: str
    variant: str
    request_id: str
    prediction_id: str
    event_time: int
    received_time: int
    latency: int = 0
    status: int = 200
    is_shadow: bool = False


KeptArray = tuple[int, bool, Array | None]
"""An array: its position, True if it is text, and the kept columns (None: all). A named tuple would be slower."""
MaskedColumn = tuple[int, int | None]
"""A column whose hashes are written: the position of its array, and its place in the array (None: it is the array)."""


@dataclass(slots=True, eq=False)
class EncodingPlan:
    """The encoding of arrays of exactly these names, shapes and dtypes.

    Attributes:
        layout: the JSON for the reader.
        forms: a shape and a dtype of each array.
        rows: of the request; `kept_rows` of them are written.
        is_plain: every array is written as it lies in memory.
        segment, reference: the last segment that has the layout, and the first bytes of a request's payload there.
    """

    model: CapturedModel
    layout: bytes
    names: list[str]
    forms: list[tuple[tuple[int, ...], Dtype]]
    kept: Sequence[KeptArray]
    masked: Sequence[MaskedColumn]
    rows: int
    kept_rows: int
    is_plain: bool
    segment: int = -1
    reference: bytes = b""


class RequestEncoder:
    """Encodes the requests of one worker. Every method may be called from any thread."""

    def __init__(self, mask: ColumnMask) -> None:
        self._mask = mask
        self._plans: dict[tuple[object, ...], EncodingPlan] = {}

    def encode(
        self,
        record: RequestRecord,
        model: CapturedModel,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array],
        max_rows: int,
    ) -> tuple[EncodingPlan, list[bytes]]:
        """Encode the first `max_rows` rows of a request; return the plan and the pieces of the payload.

        An array is left out if it does not have one entry per row, holds objects other than texts, or is excluded. A
        request to a model without rows is one row of whole arrays.
        """
        if not model.schema.has_rows:
            feeds, outputs = as_one_row(feeds), as_one_row(outputs)
        arrays = [*feeds.values(), *outputs.values()]
        forms = list(map(_form, arrays))
        endpoint, variant, request_id, prediction_id, event_time, received_time, latency, status, is_shadow = record
        key = endpoint, variant, is_shadow, max_rows, len(feeds), forms[0][0] if forms else ()
        plan = self._plans.get(key)
        if plan is None or plan.model is not model or plan.forms != forms or plan.names != [*feeds, *outputs]:
            plan = _make_plan(record, model, feeds, outputs, max_rows)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        request, prediction = request_id.encode(), prediction_id.encode()
        if not 0 <= latency <= _MAX_LATENCY:
            latency = min(max(latency, 0), _MAX_LATENCY)
        head = _HEAD.pack(plan.kept_rows, event_time, received_time, latency, status, len(request), len(prediction))
        if plan.is_plain:
            return plan, [head, request, prediction, *map(np.ndarray.tobytes, arrays)]
        if plan.kept_rows < plan.rows:
            arrays = [array[: plan.kept_rows] if array.ndim else array for array in arrays]
        pieces = [head, request, prediction]
        for position, is_text, columns in plan.kept:
            array = arrays[position]
            if columns is not None:
                array = as_table(array)[:, columns]
            if is_text:
                text = orjson.dumps(array.tolist())
                pieces += (_TEXT_LENGTH.pack(len(text)), text)
            else:
                pieces.append(array.tobytes())
        for position, place in plan.masked:
            array = arrays[position]
            if place is not None:
                array = as_table(array)[:, place]
            text = orjson.dumps(self._mask.hash_column(array))
            pieces += (_TEXT_LENGTH.pack(len(text)), text)
        return plan, pieces


def as_one_row(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return whole arrays as the one entry of their row: [1, …]."""
    return {name: array[np.newaxis] for name, array in arrays.items()}


def decode_layout(
    payload_of: Callable[[int], memoryview | None], offset: int, models: dict[int, CapturedModel]
) -> tuple[CapturedModel, Layout]:
    """Return the layout at `offset` and its model. All layouts of a model share one object.

    `payload_of` maps an offset of the segment to a payload. `models` caches decoded models by offset. Raises
    ValueError, KeyError or TypeError if there is no layout or model.
    """

    def payload_at(offset: int) -> memoryview:
        if (payload := payload_of(offset)) is None:
            raise ValueError("a frame refers to another that is not there")
        return payload

    payload = payload_at(offset)
    _, model_offset = REFERRING.unpack_from(payload)
    if model_offset not in models:
        models[model_offset] = decode_model(payload_at(model_offset)[1:])
    return models[model_offset], orjson.loads(payload[REFERRING.size :])


def _make_plan(
    record: RequestRecord, model: CapturedModel, feeds: Mapping[str, Array], outputs: Mapping[str, Array], max_rows: int
) -> EncodingPlan:
    """Return the plan of a request. A request that has failed is one row of its outputs, which all are texts."""
    is_failed = record.status >= FIRST_ERROR_STATUS
    rows = 1 if is_failed else next((len(array) for array in feeds.values() if array.ndim), 0)
    sides: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {"feeds": [], "outputs": [], "masked": []}
    kept: list[KeptArray] = []
    masked: list[MaskedColumn] = []
    arrays = [*feeds.items(), *outputs.items()]
    for position, (name, array) in enumerate(arrays):
        if is_failed:
            sides["outputs"].append((name, "str", ()))
            kept.append((position, True, None))
            continue
        is_feed, is_text = position < len(feeds), array.dtype.kind == "O"
        holds_objects = is_text and array.size and name not in model.keys and not isinstance(array.flat[0], str | None)
        if array.shape[:1] != (rows,) or holds_objects:
            continue  # no column can hold it
        for column, place in model.masked.get(name, ()) if is_feed else model.masked_outputs(name, array):
            sides["masked"].append((column, "str", ()))
            masked.append((position, place))
        columns = model.cuts.get(name) if is_feed else None
        if (columns is not None and not len(columns)) or (not is_feed and model.leaves_out(name)):
            continue
        inner = array.shape[1:] if columns is None else (len(columns),)
        sides["feeds" if is_feed else "outputs"].append((name, "str" if is_text else array.dtype.str, inner))
        kept.append((position, is_text, columns))
    if not masked:
        del sides["masked"]
    head = {"endpoint": record.endpoint, "variant": record.variant, "shadow": record.is_shadow, "failed": is_failed}
    names, forms = [name for name, _ in arrays], [_form(array) for _, array in arrays]
    are_plain = all(columns is None and not is_text for _, is_text, columns in kept)
    is_plain = rows <= max_rows and len(kept) == len(arrays) and are_plain
    layout = orjson.dumps({**head, **sides})
    return EncodingPlan(model, layout, names, forms, kept, masked, rows, min(rows, max_rows), is_plain)


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
    """The feedback of one request, received at `received_time` in microseconds since 1970 (UTC).

    The segment's name and the frame's `offset` identify duplicates.
    """

    endpoint: str
    received_time: int
    entries: tuple[Feedback, ...]
    offset: int = 0


def encode_feedback(endpoint: str, received_time: int, entries: Sequence[Feedback]) -> bytes:
    """Return the payload of a frame, without its kind."""
    return orjson.dumps([endpoint, received_time, [tuple(entry) for entry in entries]])


def decode_feedback(payload: bytes | memoryview, offset: int) -> FeedbackFrame:
    """Reverse `encode_feedback`. Raises ValueError or TypeError if the payload is malformed."""
    fields: list[Any] = orjson.loads(payload)
    endpoint, received_time, entries = fields
    return FeedbackFrame(endpoint, received_time, tuple(Feedback(*entry) for entry in entries), offset)
