"""What people pass to `predict` → the body that /invocations takes.

The body is one of MLflow's forms: dataframe_split, dataframe_records, instances, inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pandas as pd

from mlflow_deploy_plugin.errors import InvalidRequest

BODY_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def encode_body(inputs: Any) -> bytes:
    """The JSON body for a DataFrame, an ndarray, a dict of columns (or of one row), or a list of rows or records.

    A mapping, or a DataFrame made of a file by `pandas.read_json`, that is one of MLflow's forms is taken as that.
    Numbers keep all their digits; NaN, NaT and None are null.

    Raises:
        InvalidRequest: nothing of these, or something in it that JSON has no form for.
    """
    try:
        return orjson.dumps(_body_document(inputs), default=_json_value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InvalidRequest(f"the input cannot be sent as JSON: {error}") from None


def _body_document(inputs: Any) -> Mapping[str, Any]:
    match inputs:
        case pd.DataFrame():
            return _document_read_by_pandas(inputs) or _frame_document(inputs)
        case np.ndarray():
            return {"inputs": inputs.tolist()}
        case Mapping():
            return _mapping_document(inputs)
        case list() | tuple():
            is_records = len(inputs) > 0 and all(isinstance(row, Mapping) for row in inputs)
            return {"dataframe_records" if is_records else "inputs": list(inputs)}
    raise InvalidRequest(
        f"cannot predict on {type(inputs).__name__}: give a DataFrame, an array, a dict of columns, or a list of rows"
    )


def _frame_document(frame: pd.DataFrame) -> Mapping[str, Any]:
    cells = frame.astype(object)
    rows = cells.where(frame.notna(), None).to_numpy().tolist()
    if frame.columns.inferred_type == "integer":
        return {"inputs": rows}  # columns without names are known by their position
    return {"dataframe_split": {"columns": [str(column) for column in frame.columns], "data": rows}}


def _mapping_document(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    if sum(form in inputs for form in BODY_FORMS) == 1:
        return inputs
    if not any(isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) for value in inputs.values()):
        return {"dataframe_records": [inputs]}
    return {"inputs": dict(inputs)}


def _document_read_by_pandas(frame: pd.DataFrame) -> Mapping[str, Any] | None:
    """What stood in the file, where `frame` is what `pandas.read_json` makes of one of MLflow's forms; else None.

    It takes the form's name for the only column, and the keys or positions within for the index.
    """
    if list(frame.columns) not in [[form] for form in BODY_FORMS]:
        return None
    form = str(frame.columns[0])
    cells = [None if _is_missing(cell) else cell for cell in frame[form].tolist()]
    if all(isinstance(key, str) for key in frame.index):
        document = dict(zip(frame.index, cells, strict=True))
        is_split = {"columns", "data"} <= document.keys()
        return {form: document} if form in ("inputs", "instances") or is_split else None
    return {form: cells}


def _is_missing(cell: Any) -> bool:
    return pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _json_value(value: Any) -> Any:
    """What orjson does not know: numpy scalars and arrays that it cannot take as they are, and timestamps."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    raise TypeError(f"a value of the type {type(value).__name__} ({str(value)[:40]!r})")
