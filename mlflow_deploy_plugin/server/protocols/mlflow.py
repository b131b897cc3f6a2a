"""MLflow's scoring protocol: the body of `/invocations`, and its answer.

https://mlflow.org/docs/latest/genai/serving/custom-apps.html and `mlflow/pyfunc/scoring_server/__init__.py` (3.17):
exactly one of `dataframe_split`, `dataframe_records`, `instances`, `inputs` in JSON, or CSV with a header; the answer
is `{"predictions": …}`. `params` is accepted; an ONNX graph has none, and MLflow ignores those it does not know.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest, UnsupportedMediaType
from mlflow_deploy_plugin.runtime import Array, Feeds, Schema
from mlflow_deploy_plugin.server.protocols.content import CSV, JSON, dump_json, json_object, json_type, media_type
from mlflow_deploy_plugin.server.protocols.numbers import LARGE_BYTES, read_feeds
from mlflow_deploy_plugin.server.protocols.table import read_csv


def decode(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """The feeds in the body of `/invocations`.

    Raises:
        UnsupportedMediaType: neither JSON nor CSV in UTF-8, or a parameter beside the charset.
        InvalidRequest: the body cannot be read, or holds none or several of the four fields.
        SchemaMismatch: it can be read, and does not fit the signature.
    """
    kind = media_type(content_type, _ACCEPTED)
    parameters = _parameters(content_type or "", kind) if content_type != kind else {}
    if kind == CSV:
        return read_csv(body, schema, parameters.get("header") != "absent")
    if len(body) >= LARGE_BYTES and (feeds := read_feeds(body, schema)) is not None:
        return feeds
    return decode_document(json_object(body), schema)


def decode_document(document: dict[str, Any], schema: Schema) -> Feeds:
    """As `decode`, for a body that is parsed already."""
    if len(document) == 1:
        ((field, value),) = document.items()
        if read := _READERS.get(field):
            return read(value, schema)
    present = [field for field in _READERS if field in document]
    if len(present) != 1:
        holds = ", ".join(repr(name[:30]) for name in islice(document, 10)) or "nothing"
        raise InvalidRequest(
            f"the JSON object must hold exactly one of the fields {', '.join(_READERS)}; this one holds {holds}"
        )
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        raise InvalidRequest(f"params is a JSON {json_type(params)}; an object is expected")
    return _READERS[present[0]](document[present[0]], schema)


def is_table(content_type: str | None, body: bytes) -> bool:
    """Whether a body that `decode` has read is a table to MLflow: CSV, `dataframe_split` or `dataframe_records`."""
    if media_type(content_type, _ACCEPTED) == CSV:
        return True
    may_be = b"dataframe_" in body or b"\\u" in body  # its letters may be escaped
    return may_be and not _TABLES.isdisjoint(json_object(body))


def encode(prediction: Array | dict[str, Array]) -> bytes:
    """`{"predictions": …}`: nested lists, a mapping of them by output, or records; see `OnnxModel.prediction`."""
    return dump_json({"predictions": prediction})


def _parameters(content_type: str, kind: str) -> dict[str, str]:
    """The parameters of the content type: `charset`, and for CSV `header=present|absent` (RFC 4180).

    What else would change the meaning is refused, as MLflow 1's `format=pandas-split`.
    """
    parameters: dict[str, str] = {}
    for parameter in content_type.split(";")[1:]:
        name, _, value = (part.strip(' \t"') for part in parameter.partition("="))
        name, value = name.lower(), value.lower()
        if name == "header" and kind == CSV:
            if value not in ("present", "absent"):
                raise UnsupportedMediaType(f"the Content-Type says header={value[:40]!r}; it is present or absent")
        elif name and name != "charset":
            known = "charset and header are" if kind == CSV else "only charset is"
            raise UnsupportedMediaType(f"the Content-Type has the parameter {name[:40]!r}; {known} understood")
        parameters[name] = value
    return parameters


def _dataframe_split(value: Any, schema: Schema) -> Feeds:
    """pandas' `to_dict(orient="split")`; its `index` is ignored, as in MLflow's answer."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise InvalidRequest("dataframe_split must be an object with the arrays `columns` and `data`")
    if unknown := value.keys() - _SPLIT_KEYS:
        raise InvalidRequest(f"dataframe_split holds {min(unknown)[:60]!r}; it takes columns, data and index")
    index, columns = value.get("index"), value.get("columns")
    if index is not None and (not isinstance(index, list) or len(index) != len(value["data"])):
        raise InvalidRequest(
            f"dataframe_split: index must be an array with one label for each of {len(value['data'])} rows"
        )
    if columns is None:
        return schema.from_array(value["data"])
    kinds = set(map(type, columns)) if isinstance(columns, list) else {object}
    if not kinds <= _NAMES:
        raise InvalidRequest("dataframe_split: columns must be an array of names")
    return schema.from_rows(columns if kinds == {str} else list(map(str, columns)), value["data"])


def _dataframe_records(value: Any, schema: Schema) -> Feeds:
    return schema.from_records(_rows("dataframe_records", value))


def _instances(value: Any, schema: Schema) -> Feeds:
    return _named_or_rows("instances", value, schema)


def _inputs(value: Any, schema: Schema) -> Feeds:
    return _named_or_rows("inputs", value, schema)


def _named_or_rows(field: str, value: Any, schema: Schema) -> Feeds:
    """Columns or tensors by name, one record (no value of it is a list), records, or rows without names."""
    if isinstance(value, dict):
        is_record = schema.columns and value and not any(isinstance(entry, list) for entry in value.values())
        return schema.from_records([value]) if is_record else schema.from_columns(value)
    rows = _rows(field, value)
    return schema.from_records(rows) if rows and isinstance(rows[0], dict) else schema.from_array(rows)


def _rows(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{field} is a JSON {json_type(value)}; an array is expected")
    return value


_ACCEPTED = (JSON, CSV)
_NAMES = {str, int}
_TABLES = frozenset({"dataframe_split", "dataframe_records"})
_SPLIT_KEYS = {"columns", "data", "index"}
_READERS: dict[str, Callable[[Any, Schema], Feeds]] = {
    "dataframe_split": _dataframe_split,
    "dataframe_records": _dataframe_records,
    "instances": _instances,
    "inputs": _inputs,
}
