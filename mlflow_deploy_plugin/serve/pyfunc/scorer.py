"""A loaded pyfunc that answers request bodies like MLflow's scoring server, and also
accepts named arrays.

MLflow's functions (`mlflow/pyfunc/scoring_server/__init__.py`, 3.17) read the body of
`/invocations` and write the response. Errors differ from MLflow's: invalid input is a
400 instead of a 5xx, and responses never contain a traceback.
"""

import base64
import inspect
import io
import json
import logging
import math
import os
import pdb
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import load_model, scoring_server
from mlflow.pyfunc.scoring_server import (
    CONTENT_TYPE_CSV,
    CONTENT_TYPE_JSON,
    DF_RECORDS,
    INPUTS,
    INSTANCES,
)
from mlflow.tracing import context as tracing_context
from mlflow.tracing import get_bridged_tracer_provider
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map, Object
from mlflow.types.schema import Array as ArrayType
from mlflow.utils.proto_json_utils import NumpyEncoder
from pandas.api.types import is_object_dtype

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.errors import (
    InferenceError,
    InvalidRequest,
    OnnxserveError,
    SchemaMismatch,
    pass_exit,
)
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES, INPUT_EXAMPLE
from mlflow_deploy_plugin.core.model_code import WITHOUT_ONNX, require_model_code
from mlflow_deploy_plugin.serve.protocols import side_messages
from mlflow_deploy_plugin.serve.protocols.invocation_tables import check_separator, take_column
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage
from mlflow_deploy_plugin.serve.pyfunc.process import clean_message, error_summary, load_failure
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Column
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, object_array
from mlflow_deploy_plugin.serve.runtime.log_columns import key_array
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import UNNAMED_OUTPUT, read_served_artifact
from mlflow_deploy_plugin.serve.runtime.values import (
    Missing,
    convert_column,
    numpy_dtype,
    short_repr,
    too_many_values,
)

_log = logging.getLogger(__name__)

_A_DATE = "an ISO 8601 date such as 2013-07-01T12:30:00, from 1678 to 2261"
_ISO_8601 = re.compile(
    r"(\d{4}-\d\d-\d\d|\d{8})"
    r"([T ]\d\d(:?\d\d(:?\d\d(\.\d+)?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?"
    r"|\d{4}(-\d\d)?",
    re.ASCII,
)
"""The strings that are read as dates. pandas would also accept `now` and `2024/01/02`.
"""
_ISO_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOST_WHOLE = 2**1023
"""The limit of the integers that become floats. A larger integer may have no float."""
_TEXTS = pd.Series([""]).dtype
"""The dtype of a column of strings: `str` since pandas 3, object in older versions."""
_MISSING_TEXT: float | None = pd.Series(["", None])[1]
"""The value that pandas uses for a missing string: NaN since pandas 3, None in older
versions.
"""
_MOST_STEPS = 1_000
"""The maximum length of a list or mapping that is searched for nested estimators."""


_LATER: dict[int, type[OnnxserveError]] = {429: errors.TooManyRequests, 503: errors.NotReady}
"""The errors that clients retry, by the HTTP status of MLflow's error."""


class NotRepresentable(Exception):
    """A value cannot be represented as named arrays."""


def to_model_input(
    feeds: Mapping[str, Array], artifact: Artifact, names: Mapping[str, str | int]
) -> Any:
    """Return the input of `predict` for arrays that match the signature."""
    # A model may change its input, so copy the arrays.
    arrays: dict[str, Any] = {name: np.array(array) for name, array in feeds.items()}
    if not artifact.columns:
        if artifact.tensors[0].name:
            return arrays
        return next(iter(arrays.values()))
    return pd.DataFrame({names[name]: array for name, array in arrays.items()})


def _read_dates(name: str, column: "pd.Series[Any]") -> Array:
    """Parse ISO 8601 dates to datetime64[ns], independently of other rows. Raises
    SchemaMismatch for other values.
    """
    values = column.astype(object)
    is_iso = values.map(
        lambda value: isinstance(value, date | str) and bool(_ISO_8601.fullmatch(str(value)))
    )
    texts = values.where(is_iso.astype(bool))
    parsed = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce")
    dates = parsed.dt.tz_localize(None)
    is_in_range = dates.between(pd.Timestamp.min, pd.Timestamp.max)
    is_wrong = (values.notna() & ~is_in_range).to_numpy()
    if is_wrong.any():
        row = int(is_wrong.argmax())
        # Numbers are rejected: pandas writes milliseconds, which MLflow would read as
        # nanoseconds (dates in 1970).
        why = (
            f"{short_repr(values.iloc[row])} is not {_A_DATE}; in pandas use "
            "to_json(date_format='iso')"
        )
        raise SchemaMismatch(f"column {name!r} (datetime), row {row}: {why}", column=name)
    return np.asarray(dates.dt.as_unit("ns"))


def _decoded(name: str, column: "pd.Series[Any]") -> list[bytes | None]:
    """Return the bytes of a column of bytes and base64. Raises SchemaMismatch for other
    values.
    """
    decoded: list[bytes | None] = []
    for row, value in enumerate(column):
        if isinstance(value, bytes):
            decoded.append(value)
            continue
        if _is_missing(value):
            decoded.append(None)
            continue
        try:
            decoded.append(base64.b64decode(value, validate=True))
        except (TypeError, ValueError):  # binascii.Error is a ValueError.
            why = f"{short_repr(value)} is not base64"
            raise SchemaMismatch(
                f"column {name!r} (binary), row {row}: {why}", column=name
            ) from None
    return decoded


def _read_date_param(name: str, value: Any) -> Any:
    """Return a datetime param, or a list of them, by the rules of columns. Raises
    SchemaMismatch for other values.

    MLflow would pass on the server's time for `now` and `today`, and a missing date for
    `NaT`.
    """
    if isinstance(value, list):
        return [_read_date_param(name, entry) for entry in value]
    if value is None:
        return None
    try:
        (moment,) = _read_dates(name, pd.Series([value], dtype=object))
    except SchemaMismatch:
        raise SchemaMismatch(
            f"param {name!r} (datetime): {short_repr(value)} is not {_A_DATE}", column=name
        ) from None
    if _ISO_DAY.fullmatch(str(value)):
        return value  # MLflow converts a day to a datetime.date.
    return moment.astype("datetime64[us]").item()


def _with_doubles(value: Any, kind: Any) -> Any:
    """Return a value of an array, object or map with floats in place of whole numbers
    where `kind` has doubles.

    MLflow only accepts an integer for a double if the array has another double. A
    column of doubles accepts integers.
    """
    if kind == DataType.double:
        is_whole = type(value) is int and abs(value) < _MOST_WHOLE
        return float(value) if is_whole else value
    if isinstance(kind, ArrayType) and isinstance(value, list):
        return [_with_doubles(entry, kind.dtype) for entry in value]
    if isinstance(kind, ArrayType) and isinstance(value, np.ndarray):
        if kind.dtype == DataType.double and value.dtype.kind in "iu":
            return value.astype(float)
        if value.dtype.kind == "O":
            return [_with_doubles(entry, kind.dtype) for entry in value]
        return value
    if isinstance(kind, Object) and isinstance(value, dict):
        kinds = {part.name: part.dtype for part in kind.properties}
        return {name: _with_doubles(entry, kinds.get(name)) for name, entry in value.items()}
    if isinstance(kind, Map) and isinstance(value, dict):
        return {name: _with_doubles(entry, kind.value_type) for name, entry in value.items()}
    return value


def _use_records(document: dict[str, Any], forms: Sequence[str]) -> None:
    """Change the form of objects in a JSON document to records: in the other forms,
    MLflow would convert the values of a column to one type, and skip missing values.
    Raises SchemaMismatch if the columns of `instances` differ.
    """
    for form in forms:
        rows = document.get(form)
        is_of_objects = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        if not rows or not is_of_objects or DF_RECORDS in document:
            continue
        for position, row in enumerate(rows):
            if form == INSTANCES and row.keys() != rows[0].keys():
                raise SchemaMismatch(f"row {position} of `instances` has other columns than row 0")
        document[DF_RECORDS] = document.pop(form)


def _as_table(data: Any, types: Mapping[str, str]) -> pd.DataFrame:
    """Convert the data that MLflow has read from a body to a table, for a model with
    columns.
    """
    is_row = np.isscalar(data)
    if isinstance(data, Mapping):  # MLflow reads nested columns as one row.
        is_row = _NESTED in types.values() or not any(map(_is_list, data.values()))
    if is_row:
        data = [data]
    return pd.DataFrame(data)


def _objects(column: "pd.Series[Any]", missing: float | None = None) -> "pd.Series[Any]":
    """Return a column of Python objects, with `missing` for missing values."""
    return column.astype(object).where(column.notna(), missing)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or np.ndim(value) > 0


def _convert(column: Column, values: Sequence[object] | Array) -> Array:
    """Return the values in the type of the column. Raises SchemaMismatch for a value
    that does not fit.
    """
    with np.errstate(over="raise"):
        return convert_column(column, values, Missing.KEPT)


def _missing_text(model: Any, otherwise: float | None) -> float | None:
    """Return the value (None or NaN) of a missing string in training; `otherwise` if it
    is unknown or differs between columns.
    """
    learned: set[float | None] = set()
    parts = [model]
    seen = set[int]()
    while parts:
        part = parts.pop()
        if id(part) in seen or isinstance(part, type):
            continue
        seen.add(id(part))
        if isinstance(part, Mapping | list | tuple):
            if len(part) < _MOST_STEPS:
                steps = part.values() if isinstance(part, Mapping) else part
                parts += steps
            continue
        if part is not model and not hasattr(part, "get_params"):
            continue  # The part is not a nested scikit-learn estimator.
        fields: dict[str, Any] = getattr(part, "__dict__", {})
        parts += fields.values()
        if fields.get("missing_values", "") is None:  # The estimator is an imputer.
            learned.add(None)
        all_categories = fields.get("categories_")
        if not isinstance(all_categories, list):  # A custom estimator may have any attribute.
            continue
        for categories in all_categories:
            is_array = isinstance(categories, np.ndarray)
            if is_array and any(isinstance(category, str) for category in categories):
                missing = filter(_is_missing, categories)
                learned.update(None if value is None else np.nan for value in missing)
    return learned.pop() if len(learned) == 1 else otherwise


def to_outputs(prediction: Any) -> dict[str, Array]:
    """Convert a prediction to named arrays. Raises NotRepresentable for values other
    than numbers and strings.
    """
    if isinstance(prediction, pd.DataFrame):
        columns = {
            str(name): _array(prediction.iloc[:, index])
            for index, name in enumerate(prediction.columns)
        }
        if len(columns) != prediction.shape[1]:
            raise NotRepresentable("two columns have the same name")
        return columns
    if isinstance(prediction, Mapping):
        return {str(name): _array(value) for name, value in prediction.items()}
    return {UNNAMED_OUTPUT: _array(prediction)}


def to_texts(prediction: Any, rows: int, names: Sequence[str]) -> dict[str, Array]:
    """Convert an answer that `to_outputs` rejects: to one output with a JSON string per
    row, or to columns of values.

    Raises NotRepresentable if the number of rows or the names differ, or JSON cannot
    represent a value.
    """
    answers: Any = (
        prediction.to_dict("records") if isinstance(prediction, pd.DataFrame) else prediction
    )
    if isinstance(answers, str | Mapping) or not np.iterable(answers):
        answers = [answers]
    try:
        if len(answers) != rows:
            raise NotRepresentable(f"an answer to {rows} rows has {len(answers)} entries")
        if len(names) == 1:
            return {names[0]: _json_texts(answers)}
        if not all(isinstance(answer, Mapping) for answer in answers):
            raise NotRepresentable(f"an answer does not contain {', '.join(names)}")
        columns = {}
        for name in names:
            if not any(name in answer for answer in answers):
                continue
            values = [answer.get(name) for answer in answers]
            try:
                columns[name] = _array(values)
            except NotRepresentable:
                columns[name] = _json_texts(values)
        return columns
    except (TypeError, ValueError, RecursionError) as error:
        raise NotRepresentable(f"an answer cannot be written as JSON: {error}") from None


def _json_texts(values: Any) -> Array:
    as_json = _AS_TEXT[_NESTED]
    return _texts(values, lambda value: value if isinstance(value, str | None) else as_json(value))


def to_feeds(data: Any, artifact: Artifact, types: Mapping[str, str]) -> Feeds:
    """Return a model's input as arrays for the log, the inverse of `to_model_input`.
    Raises NotRepresentable.
    """
    try:
        columns = artifact.columns or artifact.logged_columns
        if columns:
            frame = _as_table(data, types)
            frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
            kinds = {
                column.name: COLUMN_TYPES[column.type] for column in columns if column.name in frame
            }
            return {name: _typed(frame[name], kind, types[name]) for name, kind in kinds.items()}
        if len(artifact.tensors) == 1 and not isinstance(data, Mapping):
            data = {artifact.inputs[0].name: data}
        if artifact.tensors and isinstance(data, Mapping):
            dtypes = {entry.name: numpy_dtype(entry.dtype) for entry in artifact.inputs}
            arrays = {name: np.asarray(data[name]).astype(dtype) for name, dtype in dtypes.items()}
            for name, array in arrays.items():
                if array.dtype.kind == "O":
                    arrays[name] = _typed(array.ravel(), "str", "string").reshape(array.shape)
            return arrays
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise NotRepresentable(str(error)) from None
    raise NotRepresentable("the body does not match the signature")


def _typed(column: Any, dtype: str, kind: str) -> Array:
    """Return a column as an array of `dtype`. Booleans with missing values become
    float32, and texts are written by the column's type `kind`.
    """
    if dtype == "str":
        as_text = _AS_TEXT.get(kind, _text)
        return _texts(column, lambda value: None if _is_missing(value) else as_text(value))
    # A cast to bool would make null false and NaN true.
    if dtype == "bool" and column.isna().any():
        dtype = "float32"
    return np.asarray(column.to_numpy(dtype=dtype))


def _texts(values: Any, as_text: Callable[[Any], str | None]) -> Array:
    return object_array([as_text(value) for value in values])


def _is_missing(value: Any) -> bool:
    """Return True for None, NaN and pandas' missing values."""
    # numpy cannot convert ragged lists to an array.
    return not isinstance(value, list) and bool(np.ndim(value) == 0 and pd.isna(value))


def _text(value: Any) -> str:
    # MLflow reads strings in `instances` as 0-d arrays.
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is not a string")
    return value


def _iso(value: Any) -> str:
    return str(pd.Timestamp(value).isoformat())


_NESTED = "object, array or map"
_OPENED = {ArrayType: ArrayType(AnyType()), Object: AnyType(), Map: AnyType()}
"""The types with any content that replace nested types."""
_JSON = NumpyEncoder(ensure_ascii=False, separators=(",", ":"))
_AS_TEXT: dict[str, Callable[[Any], str]] = {
    "datetime": _iso,
    "binary": lambda value: base64.b64encode(value).decode(),
    _NESTED: lambda value: _strict_json(_JSON.encode(value)).decode(),
}


def _array(value: Any) -> Array:
    """Return an output as an array whose first dimension is the rows. A scalar is a
    single row.
    """
    if isinstance(value, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        array = _of_pandas(value)
    else:
        try:
            if hasattr(value, "toarray"):  # numpy does not convert scipy's sparse matrices.
                value = value.toarray()
            array = np.asarray(value)
        except ValueError:
            raise NotRepresentable("an output is ragged") from None
    array = np.atleast_1d(array)
    if array.dtype.kind == "M":
        return _texts(array.reshape(-1), _iso).reshape(array.shape)
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "O":
        if all(isinstance(entry, str) for entry in array.flat):
            return array
        with suppress(ValueError):
            numbers = np.array(array.tolist())
            if numbers.dtype.kind in "iubf":
                return numbers
        if all(isinstance(entry, str) or _is_missing(entry) for entry in array.flat):
            raise NotRepresentable(
                "an output contains a missing string, which some protocols cannot represent"
            )
        raise NotRepresentable("an output contains objects that are neither numbers nor strings")
    if array.dtype.kind in "iub" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        return array
    raise NotRepresentable(
        f"an output contains {array.dtype} values, which are neither numbers nor strings"
    )


def _of_pandas(value: Any) -> Array:
    """Return a pandas column as an array. Integers with missing values become floats,
    and booleans with missing values and other types become objects.
    """
    if isinstance(value.dtype, np.dtype):
        return np.asarray(value)
    if pd.api.types.is_bool_dtype(value.dtype) and not pd.isna(value).any():
        return np.asarray(value.to_numpy(dtype=bool))
    if pd.api.types.is_numeric_dtype(value.dtype):
        if pd.api.types.is_integer_dtype(value.dtype) and not pd.isna(value).any():
            return np.asarray(value.to_numpy(dtype=np.int64, na_value=0))
        return np.asarray(value.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(value.astype(object))


_SINGLE = frozenset({int, float, bool, str, bytes, type(None)})


def count_values(prediction: Any) -> int:
    """Return the number of values (numbers, strings, …) in a model's answer."""
    if isinstance(prediction, pd.DataFrame):
        object_columns = [
            index for index, kind in enumerate(prediction.dtypes) if is_object_dtype(kind)
        ]
        plain_values = prediction.size - len(prediction) * len(object_columns)
        if not object_columns:
            return plain_values
        return plain_values + count_values(prediction.iloc[:, object_columns].to_numpy())
    parts: Sequence[Any]
    if isinstance(prediction, Mapping):
        parts = [*prediction.values()]
    elif isinstance(prediction, list | tuple):
        parts = prediction
    elif isinstance(prediction, np.ndarray | pd.Series) and is_object_dtype(prediction.dtype):
        parts = np.ravel(prediction).tolist()
    else:
        shape = getattr(prediction, "shape", None)  # A custom object may have any `shape`.
        return math.prod(shape) if isinstance(shape, tuple) else 1
    kinds = set(map(type, parts))  # Compare types, which is fast for a million numbers.
    is_flat = all(kind in _SINGLE or issubclass(kind, np.generic) for kind in kinds)
    if is_flat:
        return len(parts)
    return sum(map(count_values, parts))


def _strict_json(text: str) -> bytes:
    """Return MLflow's JSON with null for NaN and infinity, because MLflow writes them
    as invalid JSON.
    """
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(json.loads(text, parse_constant=lambda word: None))
    return text.encode()


class _Recorder:
    """A model for MLflow's `invocations` that records its input and output.

    An output may have at most `most` values: each value takes 50 bytes and over 1 µs as
    JSON. `convert` is applied to the data that MLflow has read. The columns in `keys`
    are not passed to the model but stored in `key_arrays`.
    """

    def __init__(
        self,
        model: Any,
        most: int,
        convert: Callable[[Any], Any] = lambda data: data,
        keys: Sequence[str] = (),
    ) -> None:
        self._model = model
        self._most = most
        self._convert = convert
        self._keys = keys
        self.key_arrays: dict[str, Array] = {}
        self.metadata = model.metadata
        self.data: Any = None
        self.params: Any = None
        self.prediction: Any = None

    def take_keys(self, document: dict[str, Any]) -> None:
        """Remove the key columns from a JSON document: pandas rounds large integers if
        any value is missing.
        """
        for name in self._keys:
            if (values := take_column(document, name)) is not None:
                self.key_arrays[name] = key_array(name, values)

    def predict(self, data: Any, params: Any = None) -> Any:
        """Return the model's prediction to MLflow's functions."""
        try:
            return self.run(data, params)
        except OnnxserveError as error:
            raise _Passed(error) from None

    def run(self, data: Any, params: Any = None) -> Any:
        """Return the model's prediction for the converted data, without the key
        columns.

        Raises the errors of `_model_errors`, and BodyTooLarge if the prediction is too
        large.
        """
        if isinstance(data, pd.DataFrame):
            for name in [name for name in self._keys if name in data]:
                self.key_arrays[name] = key_array(name, _objects(data.pop(name)).tolist())
        self.data = data
        self.params = params
        with _model_errors():
            self.data = self._convert(data)
            schema = self.metadata.get_params_schema()
            if schema is not None and isinstance(params, dict):
                dates = [spec.name for spec in schema if spec.dtype == DataType.datetime]
                sent = [name for name in dates if name in params]
                self.params = params | {name: _read_date_param(name, params[name]) for name in sent}
            self.prediction = self._model.predict(self.data, params=self.params)
        if count_values(self.prediction) > self._most:
            raise errors.BodyTooLarge(too_many_values(self._most))
        return self.prediction


class _Passed(BaseException):
    """An error that MLflow's functions pass on. They replace the class Exception."""

    def __init__(self, error: OnnxserveError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _model_errors() -> Iterator[None]:
    """Raise InferenceError for an error of the model's code, which is logged, and
    SchemaMismatch, TooManyRequests or NotReady for an error of MLflow.
    """
    try:
        yield
    except (SchemaMismatch, errors.BodyTooLarge, KeyboardInterrupt, GeneratorExit):
        raise
    except MlflowException as error:
        raise _refusal(error, SchemaMismatch) from None
    except BaseException as error:  # noqa: BLE001 - A model may raise any error.
        _log.exception("the model refused a request")
        raise InferenceError(
            f"the model cannot compute this input: {error_summary(error)}"
        ) from None


def _refusal(error: MlflowException, otherwise: type[OnnxserveError]) -> OnnxserveError:
    """Return the error for a status that clients retry (`_LATER`), otherwise an error
    of the class `otherwise`.
    """
    kind = _LATER.get(error.get_http_status_code(), otherwise)
    return kind(clean_message(error.message))


def _retyped(schema: Any, types: Mapping[Any, Any]) -> Any:
    """Return a signature's inputs with some types, or some classes of types, replaced,
    for MLflow's body readers.
    """
    if schema is None or schema.is_tensor_spec():
        return schema
    columns = []
    for spec in schema:
        kind = spec.type if isinstance(spec.type, DataType) else type(spec.type)
        columns.append(ColSpec(types.get(kind, spec.type), spec.name, spec.required))
    return Schema(columns)


def load_scorer(folder: Path) -> "Scorer":
    """Load a model outside of a server. Raises CodeRefused if model code is switched
    off, and InvalidArtifact if MLflow cannot load the model.
    """
    require_model_code(WITHOUT_ONNX)
    _log.addHandler(logging.NullHandler())  # The errors of a command do not show a traceback.
    try:
        return Scorer.load(folder)
    except BaseException as error:  # noqa: BLE001 - A model's own code may raise any error.
        pass_exit(error)
        raise errors.InvalidArtifact(
            f"MLflow cannot load the model: {load_failure(error, folder)}"
        ) from None


class Scorer:
    """A loaded model. Its methods raise the same errors as `SideProcess.request`."""

    def __init__(self, model: Any, artifact: Artifact) -> None:
        self._model = model
        self._artifact = artifact
        self._schema = model.metadata.get_input_schema()
        self._types: dict[str, str] = {}
        self._names: dict[str, str | int] = {}
        # The columns of the signature by their names in the model's table.
        self._columns: dict[str | int, tuple[Column, Any]] = {}
        columns = artifact.columns or artifact.logged_columns
        if columns:
            kinds = self._schema.input_types()
            names = self._schema.input_names()
            for column, kind, name in zip(columns, kinds, names, strict=True):
                self._types[column.name] = kind.name if isinstance(kind, DataType) else _NESTED
                self._names[column.name] = name
                self._columns[name] = column, kind
        # MLflow's CSV reader rejects dates, and wraps large numbers in 32 bits.
        as_csv = {
            DataType.datetime: DataType.string,
            DataType.binary: DataType.string,
            DataType.integer: DataType.long,
            DataType.float: DataType.double,
        }
        if artifact.columns:
            original = model
            with suppress(NotImplementedError):
                original = model.get_raw_model()
            # Python models expect None for a missing string.
            is_python = artifact.framework.startswith("pyfunc.")
            self._missing = _missing_text(original, None if is_python else _MISSING_TEXT)
        # MLflow's JSON reader would cast 2147483648 to -2147483648 and "false" to True,
        # read numbers as dates, and refuse whole numbers in arrays of doubles.
        as_json = {**dict.fromkeys(DataType, AnyType()), **_OPENED} if columns else {}
        self._csv_schema = _retyped(self._schema, as_csv)
        self._json_schema = _retyped(self._schema, as_json)
        self._has_warned = False

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Load the MLmodel folder with `mlflow.pyfunc.load_model`, and raise its
        errors.
        """
        if backend := Model.load(str(folder)).flavors.get("keras", {}).get("keras_backend"):
            # Set this before the next line imports Keras.
            os.environ.setdefault("KERAS_BACKEND", backend)
        model = load_model(str(folder))
        artifact = read_served_artifact(folder)
        if artifact.metadata.get("task") == "agent/v1/responses" and artifact.logged_columns:
            # These models validate requests themselves, and MLflow's signature rejects
            # the names of tools.
            model.metadata.signature.inputs = _retyped(model.metadata.get_input_schema(), _OPENED)
            with suppress(MlflowException):  # Each trace would repeat this warning.
                # This may create a database, so do it before the first request.
                get_bridged_tracer_provider()
        return cls(model, artifact)

    def debug(self) -> None:
        """Run `predict` of the Python model, or of MLflow's wrapper of a library, in
        pdb, without its decorators.
        """
        owner = getattr(self._model._model_impl, "python_model", None)
        name = "predict"
        if owner is None:
            owner = self._model
            name = "_predict_fn"
        predict = getattr(owner, name)
        undecorated = predict
        if inspect.ismethod(predict):
            undecorated = partial(inspect.unwrap(predict.__func__), predict.__self__)
        # MLflow reads the parameters of predict.
        setattr(owner, name, wraps(predict)(partial(pdb.runcall, undecorated)))

    def warm_up(self) -> dict[str, Array]:
        """Predict the model's example if there is one, and return the outputs with zero
        rows.
        """
        example = self._artifact.folder / INPUT_EXAMPLE
        if not example.is_file():
            return {}
        try:
            with tracing_context(enabled=False):
                outputs = self.invoke(CONTENT_TYPE_JSON, example.read_bytes()).arrays.get(
                    "outputs", {}
                )
        except OnnxserveError as refusal:
            _log.warning(
                "the model cannot predict its example (%s): %s", INPUT_EXAMPLE, refusal.message
            )
            return {}
        return {name: array[:0] for name, array in outputs.items()}

    def invoke(
        self,
        content_type: str,
        body: bytes,
        most_values: int = sys.maxsize,
        keys: Sequence[str] = (),
    ) -> SideMessage:
        """Answer a body of `/invocations`, with `feeds`, `keys`, and `outputs` or
        `texts` for the log. The columns `keys` are not passed to the model.
        """
        recorder, text = self._score(self._model, content_type, body, most_values, keys)
        feeds = self._log_feeds(recorder.data)
        arrays: dict[str, Mapping[str, Array]] = {"feeds": feeds, "keys": recorder.key_arrays}
        try:
            arrays["outputs"] = to_outputs(recorder.prediction)
        except NotRepresentable:
            rows = max(map(len, feeds.values()), default=0)
            names = [output.name for output in self._artifact.outputs] or [UNNAMED_OUTPUT]
            try:
                arrays["texts"] = to_texts(recorder.prediction, rows, names)
            except NotRepresentable as error:
                self._warn_once(error)
        return SideMessage("answer", arrays=arrays, body=_strict_json(text))

    def _score(
        self, model: Any, content_type: str, body: bytes, most_values: int, keys: Sequence[str]
    ) -> tuple[_Recorder, str]:
        """Predict for a body of `/invocations`, and return the recorder and MLflow's
        answer.
        """
        mime_type = content_type.partition(";")[0].strip()
        recorder = _Recorder(model, most_values, self._converted, keys)
        try:
            data: Any = body
            # MLflow would parse bytes twice. json keeps integers above 64 bits.
            if mime_type == CONTENT_TYPE_JSON:
                with suppress(ValueError):  # MLflow reports the error.
                    data = json.loads(body)
            if isinstance(data, dict):
                if scoring_server.is_unified_llm_input(data):  # A chat is not a table.
                    recorder = _Recorder(model, most_values, keys=keys)
                recorder.take_keys(data)
                if self._artifact.columns:
                    _use_records(data, [INSTANCES, INPUTS])
                elif self._columns:  # MLflow makes NumPy arrays of the arrays in `inputs`.
                    _use_records(data, [INSTANCES])
            else:
                data = body
            schema = self._json_schema if mime_type == CONTENT_TYPE_JSON else self._csv_schema
            has_columns = schema is None or (
                schema.has_input_names() and not schema.is_tensor_spec()
            )
            if mime_type == CONTENT_TYPE_CSV and has_columns:
                check_separator(body, [str(name) for name in self._names.values()])
            # MLflow must read a key such as 007 as text.
            if mime_type == CONTENT_TYPE_CSV and keys and has_columns:
                texts = (ColSpec(DataType.string, name, required=False) for name in keys)
                schema = Schema([*(schema or ()), *texts])
            answer = scoring_server.invocations(data, content_type, recorder, schema)
        except _Passed as passed:
            raise passed.error from None
        except SchemaMismatch:
            raise
        except MlflowException as error:
            raise _refusal(error, InvalidRequest) from None
        except Exception as error:  # noqa: BLE001 - MLflow's readers may raise any class
            _log.info("a body could not be read", exc_info=True)
            if recorder.prediction is not None:
                raise InferenceError(
                    f"the answer cannot be written as JSON: {error_summary(error)}"
                ) from None
            raise InvalidRequest(f"the body cannot be read: {error_summary(error)}") from None
        if answer.status != 200:
            kind = errors.UnsupportedMediaType if answer.status == 415 else InvalidRequest
            raise kind(clean_message(answer.response))
        return recorder, answer.response

    def stream(
        self,
        content_type: str,
        body: bytes,
        most_values: int = sys.maxsize,
        keys: Sequence[str] = (),
    ) -> Iterator[SideMessage]:
        """Yield the parts of `predict_stream` as JSON, and an end. The first part has
        `feeds` and `keys` to log.
        """
        reader = SimpleNamespace(metadata=self._model.metadata, predict=lambda data, params: None)
        recorder, _ = self._score(reader, content_type, body, most_values, keys)
        arrays = {"feeds": self._log_feeds(recorder.data), "keys": recorder.key_arrays}
        with _model_errors():
            for part in self._model.predict_stream(recorder.data, params=recorder.params):
                if count_values(part) > most_values:
                    raise errors.BodyTooLarge(too_many_values(most_values))
                text = io.StringIO()
                scoring_server.unwrapped_predictions_to_json(part, text)
                yield SideMessage(
                    side_messages.PART_MESSAGE, arrays=arrays, body=_strict_json(text.getvalue())
                )
                arrays = {"feeds": {}}
        yield SideMessage("end")

    def predict(
        self,
        feeds: Mapping[str, Array],
        most_values: int = sys.maxsize,
        parameters: Mapping[str, Any] | None = None,
    ) -> SideMessage:
        """Return named outputs for arrays that match the signature. Parameters that its
        params lack are ignored.
        """
        data = to_model_input(feeds, self._artifact, self._names)
        specs = self._model.metadata.get_params_schema() or ()
        params = None
        if parameters:
            params = {spec.name: parameters[spec.name] for spec in specs if spec.name in parameters}
        return SideMessage("answer", arrays={"outputs": self.outputs_of(data, most_values, params)})

    def outputs_of(
        self, data: Any, most_values: int = sys.maxsize, params: Mapping[str, Any] | None = None
    ) -> dict[str, Array]:
        """Return named outputs for a frame, arrays, or a mapping of arrays. Raises the
        OnnxserveError that describes the refusal, and InferenceError if the answer
        cannot be represented as named arrays.
        """
        recorder = _Recorder(self._model, most_values, self._converted)
        try:
            return to_outputs(recorder.run(data, params or None))
        except NotRepresentable as error:
            message = (
                f"the answer cannot be represented as named arrays ({error}); send the request to "
                "/invocations"
            )
            raise InferenceError(message) from None

    def _converted(self, data: Any) -> Any:
        """Return the data of a request with parsed dates, and with the missing strings
        that the model expects.
        """
        if not self._columns:
            return data
        try:
            table = data if isinstance(data, pd.DataFrame) else _as_table(data, self._types)
        except (ValueError, OverflowError) as error:
            raise SchemaMismatch(f"the columns are not a table: {error}") from None
        duplicated = {*table.columns[table.columns.duplicated()]}
        columns = {}
        is_converted = False
        # MLflow reads columns without names by position.
        names = self._columns if self._schema.has_input_names() else table.columns
        for name, (described, kind) in zip(names, self._columns.values(), strict=False):
            if name in duplicated:
                raise SchemaMismatch(f"column {name!r} is duplicated", column=str(name))
            if name in table:
                column = table[name]
                columns[name] = self._converted_column(described, kind, column)
                is_converted = is_converted or columns[name] is not column
        # MLflow ignores other columns. It would take longer to replace single columns.
        return pd.DataFrame(columns, index=table.index) if is_converted else table

    def _converted_column(self, described: Column, kind: Any, column: "pd.Series[Any]") -> Any:
        """Return a column of a table in the form that the model expects. Raises
        SchemaMismatch for a value that does not fit the type `kind`.
        """
        name = described.name
        if not isinstance(kind, DataType):
            return [_with_doubles(value, kind) for value in column]
        if kind == DataType.datetime:
            # Parquet has dates, which need no parsing.
            is_date = pd.api.types.is_datetime64_any_dtype(column.dtype)
            return column if is_date else _read_dates(name, column)
        if kind == DataType.binary:
            return _decoded(name, column)
        if kind == DataType.string:
            if pd.api.types.infer_dtype(column) != "string":
                _convert(described, _objects(column).tolist())
            # Also convert categories: before pandas 3, their missing values are NaN,
            # but None in other string columns.
            may_differ = column.isna().any() or isinstance(column.dtype, pd.CategoricalDtype)
            if not self._artifact.columns or not may_differ:
                return column
            texts = _objects(column, self._missing)
            if self._missing is None or not all(isinstance(text, str) for text in column.dropna()):
                return texts
            return texts.astype(_TEXTS)
        dtype = numpy_dtype(COLUMN_TYPES[described.type])
        if column.dtype == dtype:
            return column
        # Only a list of floats may be whole numbers of a column of integers.
        if column.dtype.kind in "iub" or column.dtype.kind == dtype.kind == "f":
            return _convert(described, column.to_numpy())
        return _convert(described, _objects(column).tolist())

    def _log_feeds(self, data: Any) -> Feeds:
        """Return the inputs for the inference log. If they cannot be represented,
        return no arrays and warn once.
        """
        try:
            if self._artifact.undescribed and not self._artifact.logged_columns:
                raise NotRepresentable(
                    "its signature has no columns that the inference log supports"
                )
            return to_feeds(data, self._artifact, self._types)
        except NotRepresentable as error:
            self._warn_once(error)
            return {}

    def _warn_once(self, reason: NotRepresentable) -> None:
        if not self._has_warned:
            _log.warning("some rows or values of this model are not captured: %s", reason)
            self._has_warned = True
