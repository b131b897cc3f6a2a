"""The body of `/feedback`: a JSON document with one or several labels of earlier
predictions.

- `{"prediction_id": "…", "row": 0, "label": 1}`: a row by its response's
  X-Prediction-Id; without `row`, all its rows.
- `{"key": {"flight": 7, "day": "…"}, "label": 1}`: the row that has these values in
  these columns.
- `{"feedback": [{…}, {…}]}`: several entries of either kind.
"""

import math
from collections.abc import Collection, Iterable

from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.core.messages import did_you_mean, join_names
from mlflow_deploy_plugin.serve.protocols.content import load_json_object
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.serve.spool.captured_model import Value
from mlflow_deploy_plugin.serve.spool.codec import Feedback

MOST_ENTRIES = 10_000
MOST_KEY_COLUMNS = 16
_MOST_KEYS = 16
"""The maximum number of different sets of key columns per body; readers of the log
compute each row's key per set.
"""
_MOST_CHARACTERS = 1000
_MOST_ID_CHARACTERS = 128
_MOST_ROW = 2**31 - 1
_FIELDS = ("prediction_id", "row", "key", "label")
_BATCH = "feedback"


def decode(content_type: str | None, body: bytes) -> list[Feedback]:
    """Return the entries of a body.

    Raises UnsupportedMediaType if the body is not JSON, and InvalidRequest if it has
    no, too many or invalid entries.
    """
    document = load_json_object(content_type, body)
    if _BATCH not in document:
        return [_decode_entry(document, "")]
    if unknown := [name for name in document if name != _BATCH]:
        raise InvalidRequest(
            f"the document has {unknown[0][:60]!r} next to 'feedback'; put it into each entry",
        )
    entries = document[_BATCH]
    if not isinstance(entries, list):
        raise InvalidRequest(f"feedback is {short_repr(entries)}; a list of objects is expected")
    if not 0 < len(entries) <= MOST_ENTRIES:
        raise InvalidRequest(
            f"feedback has {len(entries)} entries; 1 to {MOST_ENTRIES} are expected",
        )
    decoded = [_decode_entry(entry, f"feedback[{index}]") for index, entry in enumerate(entries)]
    if len({frozenset(entry.key) for entry in decoded if entry.key}) > _MOST_KEYS:
        raise InvalidRequest(f"feedback has more than {_MOST_KEYS} different sets of key columns")
    return decoded


def check_columns(
    entries: Collection[Feedback],
    columns: Collection[str],
    endpoint: str,
) -> None:
    """Raise SchemaMismatch with the most similar name if a key is not in `columns`, the
    columns of a captured row.
    """
    names = set(columns)
    for index, entry in enumerate(entries):
        for name in entry.key or ():
            if name not in names:
                where = f"feedback[{index}]." if len(entries) > 1 else ""
                raise SchemaMismatch(
                    f"{where}key names {unknown_column(name, sorted(names), endpoint)}",
                )


def unknown_column(name: str, columns: Iterable[str], endpoint: str) -> str:
    """Return the end of a message about an unknown key column. The log's own columns
    are omitted.
    """
    data_columns = [column for column in columns if not column.startswith("_")]
    existing = join_names(data_columns, name) or "no columns"
    hint = f"{did_you_mean(name, data_columns)}; rows have {existing}"
    remedy = "capture.keys in the spec adds a business id that is not an input of the model"
    return f"{name[:60]!r}, but no logged row of {endpoint} has this column{hint}; {remedy}"


def _decode_entry(entry: object, where: str) -> Feedback:
    """Return the label in an entry. `where` is the entry's place for messages, or "" if
    the entry is the whole document.

    Raises InvalidRequest if the entry has no label, unknown fields or invalid values,
    or does not have exactly one of `prediction_id` and `key`, or if the key has no or
    too many columns.
    """
    if not isinstance(entry, dict):
        raise InvalidRequest(
            f"{where} is {short_repr(entry)}; a label with a prediction_id or key is expected",
        )
    subject = where or "the feedback"
    prefix = f"{where}." if where else ""
    if unknown := [name for name in entry if name not in _FIELDS]:
        raise InvalidRequest(
            f"{prefix}{unknown[0][:60]} is not known; feedback has {', '.join(_FIELDS)}",
        )
    if "label" not in entry:
        raise InvalidRequest(f"{subject} has no label; null withdraws an earlier label")
    prediction_id = entry.get("prediction_id")
    row = entry.get("row")
    key = entry.get("key")
    if (prediction_id is None) == (key is None):
        raise InvalidRequest(f"{subject} needs either a prediction_id or a key")
    label = _checked_value(entry["label"], f"{prefix}label")
    if label != label:
        raise InvalidRequest(f"{prefix}label is nan; null withdraws an earlier label")
    if key is not None:
        if row is not None:
            raise InvalidRequest(
                f"{prefix}row requires a prediction_id; a key already selects its row",
            )
        if not isinstance(key, dict) or not 0 < len(key) <= MOST_KEY_COLUMNS:
            raise InvalidRequest(
                f"{prefix}key is {short_repr(key)}; an object of 1 to {MOST_KEY_COLUMNS} columns "
                "is expected",
            )
        values: dict[str, Value] = {}
        for name, value in key.items():
            checked = _checked_value(value, f"{prefix}key.{name[:60]}")
            values[name] = None if checked != checked else checked  # NaN is a missing value.
        return Feedback(None, None, values, label)
    if not isinstance(prediction_id, str) or not 0 < len(prediction_id) <= _MOST_ID_CHARACTERS:
        raise InvalidRequest(
            f"{prefix}prediction_id is {short_repr(prediction_id)}; the X-Prediction-Id of an "
            "answer is expected",
        )
    if row is not None and (type(row) is not int or not 0 <= row <= _MOST_ROW):
        raise InvalidRequest(f"{prefix}row is {short_repr(row)}; a whole number from 0 is expected")
    return Feedback(prediction_id, row, None, label)


def _checked_value(value: object, where: str) -> Value:
    """Return a label or a value of a key. Raises InvalidRequest if it is a list or an
    object, infinite, or too long.
    """
    if not isinstance(value, str | int | float | bool | None):
        raise InvalidRequest(
            f"{where} is {short_repr(value)}; a text, a number, true, false or null is expected",
        )
    if isinstance(value, float) and math.isinf(value):
        raise InvalidRequest(f"{where} is {value}; a finite number is expected")
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        raise InvalidRequest(
            f"{where} has {len(value)} characters; at most {_MOST_CHARACTERS} are allowed",
        )
    return value
