"""One captured request as bytes: what repeats is said once, in the layout; the rest is ids, times and the arrays.

A layout says, as JSON, which arrays are held, in which order, with their dtypes and the shape of a row. A packed
request is a head of fixed size, both ids, and the arrays: numbers as they lie in memory, strings as JSON after its
length.
`Packer` keeps how requests of one kind are packed, so that writing one costs a comparison and one copy an array.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from mlflow_deploy_plugin.runtime import Array
from mlflow_deploy_plugin.server.capture.captured_model import CapturedModel, decode_model
from mlflow_deploy_plugin.server.capture.frames import REFERRING
from mlflow_deploy_plugin.server.capture.masking import ColumnMask

_HEAD = struct.Struct("<IqqIHHH")  # rows, event time, received time, latency, status, lengths of both ids
_LONGEST_LATENCY = 2**32 - 1
FIRST_ERROR_STATUS = 400
"""The first status of those that are no answer."""
_TEXT = struct.Struct("<I")
_MOST_PLANS = 256
"""Plans that are kept, each for one endpoint, variant, number of feeds and shape of the first array; beyond it all are
made anew."""


_ALL: Array = np.empty(0, dtype=np.intp)
"""In place of an array's columns: all of them."""


class RequestRecord(NamedTuple):
    """One answered request, without its arrays; times in microseconds since 1970 (UTC), ids below 64 kB.

    A named tuple, because one is made for each request: a frozen dataclass takes three times as long.

    Attributes:
        latency: microseconds from the request's arrival to what the model gave; of a shadow, those of its run.
        status: HTTP's, of the answer.
        is_shadow: the variant has computed a copy, and has answered nobody.
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


@dataclass(frozen=True, slots=True)
class EncodingPlan:
    """How arrays of exactly these names, dtypes and shapes are packed.

    Attributes:
        layout: the JSON that tells a reader.
        model: what says which columns are kept.
        kept: the place of each array that is held among all, whether it is text, and which of its columns are held,
            if not all.
        masked: the place of each array that has a masked column, and where it lies there, if it is not the whole.
        rows: of the request; `kept_rows` of them are held.
        is_plain: every array is held as it lies in memory.
    """

    model: CapturedModel
    names: list[str]
    dtypes: list[np.dtype[Any]]
    shapes: list[tuple[int, ...]]
    layout: bytes
    kept: tuple[tuple[int, bool, Array | None], ...]
    masked: tuple[tuple[int, int | None], ...]
    rows: int
    kept_rows: int
    is_plain: bool


class RequestEncoder:
    """Packs the requests of one worker. Every method may be called from any thread."""

    def __init__(self, mask: ColumnMask) -> None:
        self._mask = mask
        self._plans: dict[tuple[Any, ...], EncodingPlan] = {}

    def pack(
        self,
        record: RequestRecord,
        model: CapturedModel,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array],
        max_rows: int,
    ) -> tuple[EncodingPlan, list[bytes]]:
        """How a request's first `max_rows` rows are packed, and the request in pieces.

        An array that has not one entry a row, or holds objects that no column takes, is left out, and so is what the
        model does not keep. A request to a model without rows is one row, of whole arrays.
        """
        if not model.schema.has_rows:
            feeds, outputs = as_one_row(feeds), as_one_row(outputs)
        arrays = [*feeds.values(), *outputs.values()]
        shapes = [array.shape for array in arrays]
        endpoint, variant, request_id, prediction_id, event_time, received_time, latency, status, is_shadow = record
        key = endpoint, variant, is_shadow, max_rows, len(feeds), shapes[0] if shapes else ()
        plan = self._plans.get(key)
        if (
            plan is None
            or plan.model is not model
            or plan.shapes != shapes
            or plan.names != [*feeds, *outputs]
            or plan.dtypes != [array.dtype for array in arrays]
        ):
            plan = _plan(record, model, feeds, outputs, max_rows)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        request, prediction = request_id.encode(), prediction_id.encode()
        if not 0 <= latency <= _LONGEST_LATENCY:  # a clock that was set back
            latency = 0
        head = _HEAD.pack(plan.kept_rows, event_time, received_time, latency, status, len(request), len(prediction))
        pieces = [head, request, prediction]
        if plan.is_plain:
            pieces += [array.tobytes() for array in arrays]
            return plan, pieces
        is_cut = plan.kept_rows < plan.rows
        for place, is_text, columns in plan.kept:
            array = arrays[place][: plan.kept_rows] if is_cut else arrays[place]
            if columns is not None:
                array = array.reshape(len(array), -1)[:, columns]
            if is_text:
                text = orjson.dumps(array.tolist())
                pieces += (_TEXT.pack(len(text)), text)
            else:
                pieces.append(array.tobytes())
        for place, column in plan.masked:
            array = arrays[place][: plan.kept_rows] if is_cut else arrays[place]
            if column is not None:
                array = (array if array.ndim == 2 else array.reshape(len(array), -1))[:, column]
            text = orjson.dumps(self._mask.hash_column(array))
            pieces += (_TEXT.pack(len(text)), text)
        return plan, pieces


def as_one_row(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Whole arrays as the one entry of their row: [1, …]."""
    return {name: array[np.newaxis] for name, array in arrays.items()}


def encode_failure(record: RequestRecord) -> tuple[bytes, list[bytes]]:
    """The layout and the pieces of a request that was not answered: one row without columns."""
    ids = record.request_id.encode(), record.prediction_id.encode()
    latency = min(max(record.latency, 0), _LONGEST_LATENCY)
    lengths = len(ids[0]), len(ids[1])
    head = _HEAD.pack(1, record.event_time, record.received_time, latency, record.status, *lengths)
    return _layout(record, {"feeds": [], "outputs": []}), [head, *ids]


def _layout(record: RequestRecord, entries: Mapping[str, Any]) -> bytes:
    said = {"endpoint": record.endpoint, "variant": record.variant, "shadow": record.is_shadow}
    return orjson.dumps({**said, "failed": record.status >= FIRST_ERROR_STATUS, **entries})


def _plan(
    record: RequestRecord,
    model: CapturedModel,
    feeds: Mapping[str, Array],
    outputs: Mapping[str, Array],
    max_rows: int,
) -> EncodingPlan:
    rows = next((len(array) for array in feeds.values() if array.ndim), 0)
    entries: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {"feeds": [], "outputs": []}
    masked_entries: list[tuple[str, str, tuple[int, ...]]] = []
    kept, masked = [], []
    arrays = [("feeds", *entry) for entry in feeds.items()] + [("outputs", *entry) for entry in outputs.items()]
    for place, (side, name, array) in enumerate(arrays):
        holds_objects = array.dtype.kind == "O"
        is_text = holds_objects and (array.size == 0 or isinstance(array.flat[0], str | None))
        if array.shape[:1] != (rows,) or (holds_objects and not is_text):
            continue  # not one value a row, or one that no column takes: it has no place in a table
        for column, position in _masked_of(model, side, name, array):
            masked_entries.append((column, "str", ()))
            masked.append((place, position))
        columns = model.cuts.get(name, _ALL) if side == "feeds" else None if name in model.left_out else _ALL
        if columns is None:
            continue
        inner = array.shape[1:] if columns is _ALL else (len(columns),)
        entries[side].append((name, "str" if is_text else array.dtype.str, inner))
        kept.append((place, is_text, None if columns is _ALL else columns))
    return EncodingPlan(
        model,
        [name for _, name, _ in arrays],
        [array.dtype for *_, array in arrays],
        [array.shape for *_, array in arrays],
        _layout(record, entries | ({"masked": masked_entries} if masked_entries else {})),
        tuple(kept),
        tuple(masked),
        rows,
        min(rows, max_rows),
        rows <= max_rows
        and len(kept) == len(arrays)
        and not any(is_text or columns is not None for _, is_text, columns in kept),
    )


def _masked_of(model: CapturedModel, side: str, name: str, array: Array) -> Sequence[tuple[str, int | None]]:
    """The masked columns that an array holds, and where."""
    if side == "feeds":
        return model.masked.get(name, ())
    column = model.masked_output(name, array)
    return () if column is None else [(column, None)]


def decode_layout(
    payload_of: Callable[[int], memoryview | None], offset: int, models: dict[int, CapturedModel]
) -> tuple[CapturedModel, Any]:
    """The layout at `offset` and its model, which is one object however many layouts it has.

    Args:
        payload_of: what the frame at an offset of the segment holds.
        models: those that were read before, by offset; a new one is added.

    Raises:
        ValueError, KeyError, TypeError: there is no layout or model.
    """
    payload = _needed(payload_of(offset))
    _, model_offset = REFERRING.unpack_from(payload)
    if model_offset not in models:
        models[model_offset] = decode_model(_needed(payload_of(model_offset))[1:])
    return models[model_offset], orjson.loads(payload[REFERRING.size :])


def _needed(payload: memoryview | None) -> memoryview:
    if payload is None:
        raise ValueError("a frame names another that is not there")
    return payload
