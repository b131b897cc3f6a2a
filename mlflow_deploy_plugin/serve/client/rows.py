"""Encode the rows of a request as bytes, and decode the bytes of a response as arrays.

A frame of pandas, polars or pyarrow is recognised by `__arrow_c_stream__`, without
importing its library:
https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mlflow_deploy_plugin.core.errors import InvalidRequest

BODY_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""The keys that distinguish MLflow's forms of a JSON body."""
JSON = "application/json"
_ARROW = "application/vnd.apache.arrow.stream"

_ARROW_LISTS = ("list", "large_list", "fixed_size_list")
_ARROW_TYPES = (
    "integer",
    "floating",
    "boolean",
    "string",
    "large_string",
    "dictionary",
    "null",
    *_ARROW_LISTS,
)
"""The Arrow types of the columns that the server accepts."""

Array = npt.NDArray[Any]


def encode_json(
    rows: Any,
    params: Mapping[str, object] | None = None,
) -> bytes:
    """Return the JSON body of `/invocations` for rows and params as in
    `Client.predict`. NaN and NaT become null. Raises InvalidRequest if the rows have an
    unknown type, or contain a value that JSON cannot represent.
    """
    document = dict(_rows_document(rows))
    if params:
        document["params"] = params
    return dump_json(document)


def encode_rows(rows: Any) -> tuple[bytes, str, str]:
    """Return the body of `/invocations`, its Content-Type and the Accept header. The
    body is Arrow, or JSON if Arrow would not keep the types of the rows (dates, for
    example). An array becomes an Arrow column without a name.
    """
    rows = _without_series(rows)
    columns = _array_columns(rows)
    if columns is None and (not hasattr(rows, "__arrow_c_stream__") or _has_unnamed_columns(rows)):
        return encode_json(rows), JSON, JSON
    import pyarrow as pa  # Imported here, so that JSON requests do not wait for the import.

    try:
        if columns is not None:
            arrow_columns = {}
            for name, values in columns.items():
                array = as_array(values)
                column = pa.array(array.reshape(-1), from_pandas=True)
                for size in reversed(array.shape[1:]):  # [N, …] becomes N lists.
                    column = pa.FixedSizeListArray.from_arrays(column, size)
                arrow_columns[name] = column
            table = pa.table(arrow_columns)
        else:
            table = pa.table(rows)
    except (pa.ArrowException, ValueError, TypeError):
        # The server decides about mixed types and column lengths.
        return encode_json(rows), JSON, JSON
    for column_type in table.schema.types:
        if not any(getattr(pa.types, f"is_{name}")(column_type) for name in _ARROW_TYPES):
            return encode_json(rows), JSON, JSON  # for example, a column of dates
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue().to_pybytes(), _ARROW, f"{_ARROW}, {JSON};q=0.5"


def _array_columns(rows: Any) -> Mapping[str, object] | None:
    """Return the columns of arrays and of a frame of numbers; None for other rows.

    The column of an array without a name has the name "".
    """
    if isinstance(rows, np.ndarray) and rows.ndim and rows.dtype.kind in "fiub":
        return {"": rows}
    if isinstance(rows, Mapping) and any(
        isinstance(values, np.ndarray) for values in rows.values()
    ):
        return rows
    if not is_pandas_frame(rows):
        return None
    has_names = rows.columns.inferred_type == "string" and rows.columns.is_unique
    if not has_names or list(rows.index.names) != [None]:
        return None
    dtypes = set(rows.dtypes)
    if len(dtypes) == 1 and all(isinstance(dtype, np.dtype) for dtype in dtypes):
        values = rows.to_numpy()
        if values.dtype.kind in "fiub":
            # Convert with numpy: pyarrow needs 25 µs per pandas column, adds metadata,
            # and reads a named index as a column.
            return dict(zip(rows.columns, values.T, strict=True))
    return None


def decode_predictions(content_type: str, body: bytes) -> Array | dict[str, Array]:
    """Return predictions: an array, or a dict by output. Raises LookupError, TypeError,
    or an orjson or Arrow error.
    """
    if content_type.startswith(_ARROW):
        import pyarrow as pa

        table = pa.ipc.open_stream(body).read_all()
        columns: dict[str, Array] = {}
        for name in table.column_names:
            chunk = table.column(name).combine_chunks()
            shape = [table.num_rows]
            while hasattr(chunk.type, "list_size"):  # Lists become further dimensions.
                shape.append(chunk.type.list_size)
                chunk = chunk.flatten()
            columns[name] = chunk.to_numpy(zero_copy_only=False).reshape(shape)
        if list(columns) == ["prediction"]:
            return columns["prediction"]
        return columns
    predictions = orjson.loads(body)["predictions"]
    if (
        isinstance(predictions, list)
        and predictions
        and all(isinstance(row, dict) for row in predictions)
    ):
        arrays = {}
        for name in predictions[0]:
            arrays[name] = as_array([row.get(name) for row in predictions])
        return arrays
    if isinstance(predictions, dict):
        return {name: as_array(values) for name, values in predictions.items()}
    return as_array(predictions)


def encode_tensors(
    inputs: Mapping[str, object],
    outputs: Sequence[str] | None,
) -> tuple[bytes, bytes]:
    """Return the JSON header and the binary tensors of a V2 request; raise
    InvalidRequest for a dtype that V2 lacks.
    """
    # Imported here, because only V2 requests need it.
    from mlflow_deploy_plugin.serve.protocols import v2_tensors

    tensors = []
    parts = []
    for name, values in inputs.items():
        array = as_array(values)
        if not (datatype := v2_tensors.array_datatype(array)):
            raise InvalidRequest(f"{name!r} has the dtype {array.dtype}; V2 has no datatype for it")
        content = v2_tensors.to_binary(array)
        parts.append(content)
        tensors.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(content)},
            },
        )
    document: dict[str, object] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if outputs is not None:
        document["outputs"] = [
            {"name": name, "parameters": {"binary_data": True}} for name in outputs
        ]
    return orjson.dumps(document), b"".join(parts)


def decode_tensors(body: bytes, head_length: int) -> dict[str, Array]:
    """Return the outputs of a V2 response. Each output is binary, or is in the JSON
    header. Raises SchemaMismatch if a tensor is invalid, and LookupError or TypeError
    if the response is not from V2.
    """
    # Imported here, because only V2 responses need it.
    from mlflow_deploy_plugin.serve.protocols import v2_tensors

    content = memoryview(body)
    start = head_length
    arrays = {}
    for position, tensor in enumerate(orjson.loads(content[:start])["outputs"]):
        head = v2_tensors.read_tensor_header(position, tensor)
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            with np.errstate(over="raise"):
                arrays[head.name] = v2_tensors.from_json(head, tensor["data"])
        else:
            arrays[head.name] = v2_tensors.from_binary(head, content[start : start + size])
            start += size
    return arrays


def as_array(values: object) -> Array:
    """Return values as an array; texts and ragged rows become an object array. None
    among numbers becomes NaN.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.asarray(values, dtype=object)
    if array.dtype.kind == "O":
        types = set(map(type, array.flat))
        if len(types) > 1 and type(None) in types and types <= {int, float, type(None)}:
            return array.astype(np.float64)
    if array.dtype.kind in "US":
        return array.astype(object)
    return array


def _has_unnamed_columns(rows: Any) -> bool:
    return getattr(getattr(rows, "columns", None), "inferred_type", "") == "integer"


def is_pandas_frame(rows: Any) -> bool:
    """Return True for a pandas DataFrame, without importing pandas."""
    return hasattr(rows, "notna") and hasattr(rows, "columns")


def _is_pandas_series(rows: Any) -> bool:
    return hasattr(rows, "notna") and hasattr(rows, "to_frame") and not hasattr(rows, "columns")


def _without_series(rows: Any) -> Any:
    """Return the rows with a pandas Series as a frame of one column, and each Series in
    a mapping as an array.
    """
    if _is_pandas_series(rows):
        return rows.to_frame()
    if not isinstance(rows, Mapping) or not any(map(_is_pandas_series, rows.values())):
        return rows
    columns = dict(rows)
    for name, values in rows.items():
        if _is_pandas_series(values):
            columns[name] = _cells(values)
    return columns


def _cells(values: Any) -> Array:
    """Return a pandas Series or DataFrame as an object array of plain values, with None
    for missing values.
    """
    cells: Array = values.astype(object).where(values.notna(), None).to_numpy()
    return cells


def _rows_document(rows: Any) -> Mapping[str, object]:
    """Return the JSON document of `/invocations` for rows of any accepted type. A
    mapping is a document, columns or a single record. Raises InvalidRequest for another
    type.
    """
    rows = _without_series(rows)
    if isinstance(rows, np.ndarray):
        return {"inputs": rows.tolist()}
    if isinstance(rows, Mapping):
        if sum(form in rows for form in BODY_FORMS) == 1:
            return rows
        has_rows = any(
            isinstance(cell, Sequence | np.ndarray) and not isinstance(cell, str)
            for cell in rows.values()
        )
        if has_rows:
            return {"inputs": dict(rows)}
        return {"dataframe_records": [rows]}
    if isinstance(rows, list | tuple):
        has_records = len(rows) > 0 and all(isinstance(row, Mapping) for row in rows)
        form = "dataframe_records" if has_records else "inputs"
        return {form: list(rows)}
    if is_pandas_frame(rows):
        cells = _cells(rows).tolist()
        if _has_unnamed_columns(rows):
            return {"inputs": cells}
        return {
            "dataframe_split": {
                "columns": [str(column) for column in rows.columns],
                "data": cells,
            },
        }
    refusal = InvalidRequest(
        f"cannot predict on {type(rows).__name__}: pass a DataFrame, an array, a dict of columns, "
        "or a list of rows",
    )
    if not hasattr(rows, "__arrow_c_stream__"):
        raise refusal
    import pyarrow as pa

    try:
        table = pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError):  # A single Arrow column is not a table.
        raise refusal from None
    columns = [column.to_pylist() for column in table.columns]
    data = list(zip(*columns, strict=True))
    return {"dataframe_split": {"columns": table.column_names, "data": data}}


def dump_json(document: Mapping[str, object]) -> bytes:
    try:
        return orjson.dumps(document, default=_json_value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InvalidRequest(f"the input cannot be sent as JSON: {error}") from None


def _json_value(value: object) -> object:
    """Convert a numpy scalar or array, a timestamp or a decimal to a value that orjson
    can encode.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"a value of the type {type(value).__name__} ({str(value)[:40]!r})")
