"""Convert an Arrow array to a numpy array and back
(https://arrow.apache.org/docs/format/Columnar.html).

The conversion reads Arrow's buffers, because pyarrow's own `to_numpy` and `array`
import pandas if it is installed (100 MB and a second with pyarrow 25), and return
object arrays for arrays with nulls. The caller has validated the table
(`pyarrow.Table.validate`), so that numpy and Python read only within the buffers.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest
from mlflow_deploy_plugin.serve.runtime.artifact import INTEGERS
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Dtype

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS: dict[str, Dtype] = {
    "halffloat": np.dtype("<f2"),
    "float": np.dtype("<f4"),
    "double": np.dtype("<f8"),
    **{dtype: np.dtype(dtype).newbyteorder("<") for dtype in INTEGERS},
}
_OFFSETS: dict[str, Dtype] = {
    "string": np.dtype("<i4"),
    "large_string": np.dtype("<i8"),
    "list": np.dtype("<i4"),
    "large_list": np.dtype("<i8"),
}
_LISTS = frozenset({"list", "large_list", "fixed_size_list"})
_TEXTS = frozenset({"string", "large_string", "string_view"})
_DATES: dict[str, Dtype] = {
    "date32[day]": np.dtype("<i4"),
    "date64[ms]": np.dtype("<i8"),
    **dict.fromkeys(
        ("timestamp[s]", "timestamp[ms]", "timestamp[us]", "timestamp[ns]"),
        np.dtype("<i8"),
    ),
}
"""The numpy dtypes of Arrow's dates and times; the brackets contain the unit."""


class UnsupportedColumn(Exception):
    """An array has an Arrow type that no model accepts, or a null where its type cannot
    have a null.
    """


@dataclass
class StringBudget:
    """The number of characters that the strings of one table may still take, and the
    table's dictionaries.

    A dictionary's string counts once per row that contains it. `dictionaries` maps the
    address of a dictionary to its values and their lengths, because the batches of a
    stream share dictionaries.
    """

    left: int
    dictionaries: dict[tuple[int, ...], tuple[Array, Array]] = field(default_factory=dict)

    def take(self, characters: int) -> None:
        """Subtract characters from the budget. Raises BodyTooLarge if the budget is
        exceeded.
        """
        self.left -= characters
        if self.left < 0:
            raise BodyTooLarge(
                "the strings of the table exceed this server's limit if a string counts once per "
                "row",
            )


def check_type(kind: "pa.DataType", dtype: str, takes_lists: bool) -> None:
    """Raise UnsupportedColumn if an Arrow type cannot become numpy's `dtype` (`str`:
    strings).
    """
    inner = kind
    name = str(kind)
    while name.partition("<")[0] in _LISTS:
        if not takes_lists:
            raise UnsupportedColumn(
                f"contains lists ({str(kind)[:60]}); one value per row is expected",
            )
        inner = inner.value_type
        name = str(inner)
    if name.startswith("dictionary<"):
        name = str(inner.value_type)
    if dtype == "str":
        fits = name in _TEXTS or _without_zone(name) in _DATES
        expected = "strings are"
    else:
        fits = name in _NUMBERS or name == "bool" or name.startswith("decimal")
        expected = "true or false is" if dtype == "bool" else "numbers are"
    if name != "null" and not fits:
        raise UnsupportedColumn(
            f"has Arrow's type {str(kind)[:60]}; {expected} expected: the model requires {dtype}",
        )


def to_numpy(array: "pa.Array", limit: int, budget: StringBudget) -> Array:
    """Return the N values of an Arrow array as an array [N], or [N, length, …] for
    lists of equal length.

    A null becomes NaN in numbers (integers then become float64), and None in strings or
    in a column of nulls. Dates and times become strings as in JSON, with a time zone in
    UTC: `2013-07-01T12:30:00.000Z`. A decimal becomes the nearest float64, or an int64
    if its type has no decimal places and all values fit.

    Raises:
        UnsupportedColumn: the type is not a number, boolean, string, date, list of
            numbers or dictionary; a boolean or a list element is null; or the lists
            have different lengths.
        InvalidRequest: there are more than `limit` values, or the buffers contradict
            each other.
        BodyTooLarge: the strings of dictionaries exceed the budget.
    """
    name = str(array.type)
    if len(array) > limit:
        raise InvalidRequest(f"a column has {len(array)} values; this server's limit is {limit}")
    if (dtype := _NUMBERS.get(name)) is not None:
        return _read_numbers(array, dtype)
    if name == "null":
        return np.full(len(array), None, dtype=object)
    if name == "bool":
        if (valid := _valid_mask(array)) is not None:
            raise _null_boolean(valid)
        return _read_bits(array.buffers()[1], array.offset, len(array))
    if name.startswith("decimal"):
        if array.type.scale == 0:
            with suppress(ValueError):  # The cast fails if a value needs more than 64 bits.
                return _read_numbers(array.cast("int64"), _NUMBERS["int64"])
        # Convert by the digits, because Arrow's own cast is off by one bit in a third
        # of the values.
        return _read_numbers(array.cast("string").cast("float64"), _NUMBERS["double"])
    if name in ("string", "large_string"):
        return _read_strings(array)
    if _without_zone(name) in _DATES:
        return _read_dates(array)
    kind = name.partition("<")[0]
    if kind == "dictionary":
        return _read_dictionary(array, limit, budget)
    if kind in _LISTS:
        return _read_lists(array, limit, budget)
    raise UnsupportedColumn(f"has Arrow's type {name[:60]}")


def to_matrix(batch: "pa.RecordBatch") -> Array | None:
    """Return a record batch as a matrix [N, columns] if all columns have the same
    numeric type; None otherwise.
    """
    kinds = set(map(str, batch.schema.types))
    # pyarrow before 25 turns a null among 16-bit floats into 0.
    if len(kinds) != 1 or not kinds <= _NUMBERS.keys() - {"halffloat"}:
        return None
    values: Array = batch.to_tensor(null_to_nan=True).to_numpy()
    return values


def address(array: "pa.Array") -> tuple[int, ...]:
    """Return the address of an array. The address is unique while the array exists."""
    addresses = [getattr(buffer, "address", 0) for buffer in array.buffers()]
    return (*addresses, array.offset, len(array))


def _valid_mask(array: "pa.Array") -> Array | None:
    """Return an array with True for each value that is not null; None if no value is
    null.
    """
    bitmap = array.buffers()[0]
    if bitmap is None or array.null_count == 0:
        return None
    valid = _read_bits(bitmap, array.offset, len(array))
    if valid.all():  # `null_count` may be wrong, because the sender sets it.
        return None
    return valid


def _read_bits(buffer: "pa.Buffer", offset: int, count: int) -> Array:
    """Return `count` booleans of a buffer of bits, starting at the bit `offset`."""
    packed = _view(
        buffer,
        np.dtype(np.uint8),
        offset // 8,
        (offset % 8 + count + 7) // 8,
    )
    return np.unpackbits(packed, bitorder="little")[offset % 8 :][:count].astype(np.bool_)


def _view(buffer: "pa.Buffer", dtype: Dtype, offset: int, count: int) -> Array:
    """Return `count` elements of a buffer, starting at the element `offset`, without a
    copy if they are aligned.
    """
    if count == 0:
        return np.empty(0, dtype)
    array = np.frombuffer(buffer, dtype, count, offset * dtype.itemsize)
    return array if array.flags.aligned else array.copy()


def _null_boolean(valid: Array) -> UnsupportedColumn:
    return UnsupportedColumn(f"is null in row {int(np.argmin(valid))}; true or false is expected")


def _without_zone(name: str) -> str:
    if ", tz=" in name:
        return f"{name.partition(',')[0]}]"
    return name


def _read_numbers(array: "pa.Array", dtype: Dtype) -> Array:
    """Return numbers of this dtype. If a value is null, it becomes NaN, and integers
    become float64.
    """
    bitmap, data = array.buffers()
    values = _view(data, dtype, array.offset, len(array))
    if bitmap is not None and (valid := _valid_mask(array)) is not None:
        values = values.astype(_with_nan(dtype))
        values[~valid] = np.nan
    return values


def _with_nan(dtype: Dtype) -> Dtype:
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _read_dates(array: "pa.Array") -> Array:
    """Return dates or times as texts in ISO 8601, and None for a null. Times with a
    zone are in UTC.
    """
    name = str(array.type)
    kind = _without_zone(name)
    timezone: Literal["UTC", "naive"] = "UTC" if ", tz=" in name else "naive"
    unit = kind.partition("[")[2].rstrip("]").replace("day", "D")
    dates = _view(
        array.buffers()[1],
        _DATES[kind],
        array.offset,
        len(array),
    ).astype(f"M8[{unit}]")
    texts = np.datetime_as_string(dates, timezone=timezone).astype(object)
    texts[np.isnat(dates)] = None
    if (valid := _valid_mask(array)) is not None:
        texts[~valid] = None
    return texts


def _read_strings(array: "pa.Array") -> Array:
    """Return strings, and None for a null. Raises InvalidRequest if a string is not
    UTF-8, or the offsets decrease.
    """
    try:
        array.validate(full=True)
    except ValueError:
        raise InvalidRequest(
            "the Arrow data is not valid: a string is not UTF-8, or offsets decrease",
        ) from None
    _, positions, buffer = array.buffers()
    offsets = _view(
        positions,
        _OFFSETS[str(array.type)],
        array.offset,
        len(array) + 1,
    )
    data = b"" if buffer is None else buffer.to_pybytes()
    texts = np.empty(len(array), dtype=object)
    texts[:] = [data[start:end].decode() for start, end in pairwise(offsets.tolist())]
    valid = _valid_mask(array)
    if valid is not None:
        texts[~valid] = None
    return texts


def _read_dictionary(array: "pa.Array", limit: int, budget: StringBudget) -> Array:
    """Return the values of a dictionary-encoded array. A null becomes NaN in numbers,
    and None in strings.

    Raises InvalidRequest if an index is out of range, UnsupportedColumn for a null
    boolean, and BodyTooLarge if the strings exceed the budget.
    """
    # The values of a dictionary, and the number of characters of each, are read once.
    key = address(array.dictionary)
    if key not in budget.dictionaries:
        words = to_numpy(array.dictionary, limit, budget)
        lengths = np.zeros(len(words), np.int64)
        if words.dtype.kind == "O":
            lengths[:] = [len(word or "") for word in words]
        budget.dictionaries[key] = words, lengths
    words, lengths = budget.dictionaries[key]
    indices = _view(
        array.indices.buffers()[1],
        _NUMBERS[str(array.indices.type)],
        array.offset,
        len(array),
    )
    valid = _valid_mask(array)
    if valid is not None:
        indices = indices[valid]
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(words):
        raise InvalidRequest(
            "the Arrow data is not valid: an index is out of the range of its dictionary",
        )
    budget.take(int(lengths[indices].sum()))
    if valid is None:
        return words[indices]
    if words.dtype.kind == "b":
        raise _null_boolean(valid)
    if words.dtype.kind == "O":
        values = np.full(len(array), None, dtype=object)
    else:
        values = np.full(
            len(array),
            np.nan,
            dtype=_with_nan(words.dtype),
        )
    values[valid] = words[indices]
    return values


def _read_lists(array: "pa.Array", limit: int, budget: StringBudget) -> Array:
    """Return lists of equal length as the rows of a tensor. Raises UnsupportedColumn if
    a list is null, or the lengths differ.
    """
    if array.null_count:
        raise UnsupportedColumn("contains a null where a list is expected")
    kind = str(array.type).partition("<")[0]
    if kind in _OFFSETS:
        offsets = _view(
            array.buffers()[1],
            _OFFSETS[kind],
            array.offset,
            len(array) + 1,
        )
        lengths = np.diff(offsets)
        if len(lengths) and (lengths.min() != lengths.max() or lengths[0] < 0):
            raise UnsupportedColumn("contains lists of different lengths")
        size = int(lengths[0]) if len(lengths) else 0
    else:
        size = array.type.list_size
    values = to_numpy(array.flatten(), limit, budget)
    return values.reshape(len(array), size, *values.shape[1:])


def packed_strings(values: Array) -> tuple[Array, bytes]:
    """Return the offsets and the bytes of an Arrow string array."""
    texts = [str(value).encode() for value in values]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(
        [len(text) for text in texts],
        out=offsets[1:],
    )
    return offsets, b"".join(texts)
