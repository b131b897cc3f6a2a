"""Named arrays ↔ the inputs and outputs of an MLflow model: frames, arrays, mappings of them, lists."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.pyfunc.process import RequestRefused
from mlflow_deploy_plugin.runtime import COLUMN_TYPES, UNNAMED_OUTPUT, Array, Artifact, Feeds, numpy_dtype


class NotRepresentable(Exception):
    """A value has no form as named arrays."""


def to_model_input(feeds: Mapping[str, Array], artifact: Artifact, types: Mapping[str, str], is_named: bool) -> Any:
    """Return the input of `predict` for arrays that fit the signature.

    Args:
        types: MLflow's type of each column, by name.
        is_named: true if the columns of the signature have names. If not, they are numbered.

    Raises:
        RequestRefused: a text is no date, or no base64.
    """
    arrays: dict[str, Any] = {name: np.array(array) for name, array in feeds.items()}  # what came is not writable
    if not artifact.columns:
        return arrays if artifact.tensors[0].name else next(iter(arrays.values()))
    for name, array in arrays.items():
        kind = types[name]
        try:
            if kind == "datetime":
                arrays[name] = pd.to_datetime(array, utc=True, format="ISO8601").tz_localize(None)
            elif kind == "binary":
                arrays[name] = [None if text is None else base64.b64decode(text, validate=True) for text in array]
        except ValueError:  # binascii.Error is one
            expected = "a date as 2013-07-01T12:30:00" if kind == "datetime" else "base64"
            raise RequestRefused("schema", f"column {name!r} ({kind}) holds a text that is not {expected}") from None
    frame = pd.DataFrame(arrays)
    return frame if is_named else frame.set_axis(range(frame.shape[1]), axis=1)


def to_outputs(prediction: Any) -> dict[str, Array]:
    """Return the result of `predict` as named arrays.

    Raises:
        NotRepresentable: it holds values that are neither numbers, booleans nor strings.
    """
    if isinstance(prediction, pd.DataFrame):
        named = {str(name): _array(prediction.iloc[:, place]) for place, name in enumerate(prediction.columns)}
        if len(named) != prediction.shape[1]:
            raise NotRepresentable("two columns have one name")
        return named
    if isinstance(prediction, Mapping):
        return {str(name): _array(value) for name, value in prediction.items()}
    return {UNNAMED_OUTPUT: _array(prediction)}


def to_feeds(data: Any, artifact: Artifact, types: Mapping[str, str]) -> Feeds:
    """Return the arrays that the inference log keeps of the data that MLflow read from a body.

    This is the inverse of `to_model_input`.

    Raises:
        NotRepresentable: the signature describes other data.
    """
    try:
        if artifact.columns:
            # MLflow makes a table of `inputs` and `instances` for a model of columns
            if isinstance(data, Mapping) and all(np.ndim(value) == 0 for value in data.values()):
                data = [data]
            frame = pd.DataFrame(data)
            frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
            kinds = {column.name: COLUMN_TYPES[column.type] for column in artifact.columns if column.name in frame}
            return {name: _typed(frame[name], kind, types[name]) for name, kind in kinds.items()}
        if artifact.tensors and isinstance(data, Mapping):
            return {entry.name: np.asarray(data[entry.name]).astype(entry.dtype) for entry in artifact.inputs}
        if len(artifact.tensors) == 1:
            entry = artifact.inputs[0]
            return {entry.name: np.asarray(data).astype(numpy_dtype(entry.dtype))}
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise NotRepresentable(str(error)) from None
    raise NotRepresentable("the body is not what the signature describes")


def _typed(column: Any, dtype: str, kind: str) -> Array:
    if dtype == "str":
        as_text = _AS_TEXT.get(kind, _text)
        return _texts(column, lambda value: None if _is_missing(value) else as_text(value))
    if dtype == "bool" and column.isna().any():  # cast to bool, null is false and NaN is true
        dtype = "float32"
    return np.asarray(column.to_numpy(dtype=dtype))


def _texts(values: Any, as_text: Callable[[Any], str | None]) -> Array:
    texts = np.empty(len(values), dtype=object)
    texts[:] = [as_text(value) for value in values]
    return texts


def _is_missing(value: Any) -> bool:
    """Return True for None, NaN and the missing values of pandas."""
    return bool(np.ndim(value) == 0 and pd.isna(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def _iso(value: Any) -> str:
    return str(pd.Timestamp(value).isoformat())


_AS_TEXT: dict[str, Callable[[Any], str]] = {
    "datetime": _iso,
    "binary": lambda value: base64.b64encode(value).decode(),
}


def _array(value: Any) -> Array:
    """Return one output with its rows first. A single value is one row."""
    if isinstance(value, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        array = _of_pandas(value)
    else:
        try:  # scipy's sparse matrices are no arrays to numpy
            array = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
        except ValueError:
            raise NotRepresentable("an output is ragged") from None
    array = np.atleast_1d(array)
    if array.dtype.kind == "M":
        return _texts(array.reshape(-1), _iso).reshape(array.shape)
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind in "iub" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        return array
    if array.dtype.kind == "O":
        if all(isinstance(entry, str) for entry in array.flat):
            return array
        try:
            listed = np.array(array.tolist())
        except ValueError:
            listed = array
        if listed.dtype.kind in "iubf":
            return listed
        if all(isinstance(entry, str) or _is_missing(entry) for entry in array.flat):
            raise NotRepresentable("an output holds a missing text, for which not every protocol has a word")
    raise NotRepresentable(f"an output holds {array.dtype} that are neither numbers nor texts")


def _of_pandas(value: Any) -> Array:
    if isinstance(value.dtype, np.dtype):
        return np.asarray(value)
    if pd.api.types.is_bool_dtype(value.dtype) and not pd.isna(value).any():
        return np.asarray(value.to_numpy(dtype=bool))
    if pd.api.types.is_numeric_dtype(value.dtype):
        whole = pd.api.types.is_integer_dtype(value.dtype) and not pd.isna(value).any()
        return np.asarray(value.to_numpy(dtype=np.int64 if whole else np.float64, na_value=0 if whole else np.nan))
    return np.asarray(value.astype(object))
