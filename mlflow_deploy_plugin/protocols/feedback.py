"""The body of `/feedback`: labels of earlier predictions, one or many in a JSON document.

{"prediction_id": "…", "row": 0, "label": 1}        a row of an answer, by its X-Prediction-Id; all rows without `row`
{"key": {"flight": 7, "day": "…"}, "label": 1}      the row that has these values in these columns
{"feedback": [{…}, {…}]}                            many of either kind
"""

import math
from collections.abc import Collection, Iterable

from mlflow_deploy_plugin.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.messages import did_you_mean, join_names
from mlflow_deploy_plugin.protocols.content import load_json_object
from mlflow_deploy_plugin.runtime.values import short_repr
from mlflow_deploy_plugin.spool import Feedback
from mlflow_deploy_plugin.spool.captured_model import Value

MOST_ENTRIES = 10_000
MOST_KEY_COLUMNS = 16
_MOST_KEYS = 16
"""The most sets of key columns in a body. For each set, a reader of the log makes a key of every row."""
_MOST_CHARACTERS = 1000
_MOST_ID_CHARACTERS = 128
_MOST_ROW = 2**31 - 1
_FIELDS = ("prediction_id", "row", "key", "label")
_BATCH = "feedback"


def decode(content_type: str | None, body: bytes) -> list[Feedback]:
    """Return the entries of a body.

    Raises UnsupportedMediaType if it is not JSON, InvalidRequest if it has no, too many or invalid entries.
    """
    document = load_json_object(content_type, body)
    if _BATCH not in document:
        return [_entry(document, "")]
    if unknown := [name for name in document if name != _BATCH]:
        raise InvalidRequest(f"the document holds {unknown[0][:60]!r} beside 'feedback'; an entry says it for itself")
    entries = document[_BATCH]
    if not isinstance(entries, list):
        raise InvalidRequest(f"feedback is {short_repr(entries)}; a list of objects is expected")
    if not 0 < len(entries) <= MOST_ENTRIES:
        raise InvalidRequest(f"feedback holds {len(entries)} entries; 1 to {MOST_ENTRIES} are expected")
    decoded = [_entry(entry, f"feedback[{place}]") for place, entry in enumerate(entries)]
    if len({frozenset(entry.key) for entry in decoded if entry.key}) > _MOST_KEYS:
        raise InvalidRequest(f"feedback names rows by more than {_MOST_KEYS} different sets of key columns")
    return decoded


def check_columns(entries: Collection[Feedback], columns: Collection[str], endpoint: str) -> None:
    """Raise SchemaMismatch with the nearest name if a key is not in `columns`, those of a captured row."""
    known = set(columns)
    for place, entry in enumerate(entries):
        for name in entry.key or ():
            if name not in known:
                where = f"feedback[{place}]." if len(entries) > 1 else ""
                raise SchemaMismatch(f"{where}key names {unknown_column(name, sorted(known), endpoint)}")


def unknown_column(name: str, columns: Iterable[str], endpoint: str) -> str:
    """Return the end of a message about an unknown key column; it omits the log's own columns."""
    own = [column for column in columns if not column.startswith("_")]
    known = f"{did_you_mean(name, own)}; rows have {join_names(own, name) or 'no columns'}"
    remedy = "capture.keys in the spec adds a business id, which the model does not take"
    return f"{name[:60]!r}, which no logged row of {endpoint} has{known}; {remedy}"


def _entry(entry: object, where: str) -> Feedback:
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where} is {short_repr(entry)}; an object with a prediction_id or a key, and a label")
    dot = where + "." if where else ""
    if unknown := [name for name in entry if name not in _FIELDS]:
        raise InvalidRequest(f"{dot}{unknown[0][:60]} is not known; feedback has {', '.join(_FIELDS)}")
    if "label" not in entry:
        raise InvalidRequest(f"{where or 'the feedback'} has no label; null takes an earlier one back")
    prediction_id, row, key = entry.get("prediction_id"), entry.get("row"), entry.get("key")
    if (prediction_id is None) == (key is None):
        raise InvalidRequest(f"{where or 'the feedback'} needs a prediction_id or a key, and not both")
    label = _checked_value(entry["label"], f"{dot}label")
    if label != label:
        raise InvalidRequest(f"{dot}label is nan; null takes an earlier one back")
    if key is not None:
        if row is not None:
            raise InvalidRequest(f"{dot}row goes with a prediction_id; a key names its row itself")
        if not isinstance(key, dict) or not 0 < len(key) <= MOST_KEY_COLUMNS:
            raise InvalidRequest(
                f"{dot}key is {short_repr(key)}; an object of 1 to {MOST_KEY_COLUMNS} columns is expected"
            )
        values = {name: _checked_value(value, f"{dot}key.{name[:60]}") for name, value in key.items()}
        # NaN is a missing value
        return Feedback(None, None, {name: None if value != value else value for name, value in values.items()}, label)
    if not isinstance(prediction_id, str) or not 0 < len(prediction_id) <= _MOST_ID_CHARACTERS:
        raise InvalidRequest(
            f"{dot}prediction_id is {short_repr(prediction_id)}; the X-Prediction-Id of an answer is expected"
        )
    if row is not None and (type(row) is not int or not 0 <= row <= _MOST_ROW):
        raise InvalidRequest(f"{dot}row is {short_repr(row)}; a whole number from 0 is expected")
    return Feedback(prediction_id, row, None, label)


def _checked_value(value: object, where: str) -> Value:
    if not isinstance(value, str | int | float | bool | None):
        raise InvalidRequest(f"{where} is {short_repr(value)}; a text, a number, true, false or null is expected")
    if isinstance(value, float) and math.isinf(value):
        raise InvalidRequest(f"{where} is {value}; a finite number is expected")
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        raise InvalidRequest(f"{where} has {len(value)} characters; at most {_MOST_CHARACTERS} are taken")
    return value
