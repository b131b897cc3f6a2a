"""The failed requests of an endpoint, grouped by cause: the status, the error code, the column and the message without
its values. All requests with different bad values in the same column are therefore one group."""

from dataclasses import dataclass
from datetime import datetime

from mlflow_deploy_plugin.inference_log.query import Query, run_query
from mlflow_deploy_plugin.inference_log.reader import InferenceLog, View, require_endpoint, view_schema
from mlflow_deploy_plugin.inference_log.windows import TimeRange

_VARIABLE_PARTS = (
    (r"[;:] (?:did you mean|the allowed values are) .*", ""),  # This hint depends on the value.
    (
        r"""\B'(?:[^'\\]|\\.)*'|\B"(?:[^"\\]|\\.)*"|"""  # \B, because the apostrophe of "model's" is not a quote.
        r"\b[0-9A-Fa-f]{8}[0-9A-Fa-f-]{4,}\b|"  # an id
        r"[-+]?\b\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\b|\b(?:null|true|false|nan|inf)\b",
        "…",
    ),
    (r"[\[({]*…(?:[\[\](){}.,:… ]*[…\])}])?", "…"),  # a list, an object or a sequence of values
)
"""The regular expressions (RE2) of the parts that differ between messages of the same cause, and their replacements."""


@dataclass(frozen=True)
class FailureGroup:
    """The failed requests of one cause. `first` and `last` are times of receipt, in UTC. `newest` is the last request:
    request_id, prediction_id and the complete message. Texts are empty if `capture` does not keep them."""

    status: int
    error_code: str
    column: str
    cause: str
    count: int
    first: datetime
    last: datetime
    versions: list[str]
    newest: dict[str, str]


def group_failures(log: InferenceLog, endpoint: str, times: TimeRange) -> tuple[int, list[FailureGroup]]:
    """Return the number of answered requests, and the failed requests by cause, the most frequent cause first.

    Raises NotFound if the log has no request of the endpoint, and the errors of `run_query`.
    """
    view, failures = View(endpoint, times, labels=False), log.failures
    if endpoint not in failures.endpoints():
        require_endpoint(log, endpoint)
    answered, groups = 0, []
    if endpoint in log.endpoints():
        with run_query(log, Query(view, "count(*) FILTER (_row = 0)")) as result:
            answered = sum(sum(batch.column(0).to_pylist()) for batch in result.batches)
    if endpoint in failures.endpoints():
        known = view_schema(failures, view).names
        reason = (name if name in known else "NULL::VARCHAR" for name in ("_error_code", "_column", "_message"))
        code, column, message = (f"ifnull({name}, '')" for name in reason)
        cause = message
        for pattern, replacement in _VARIABLE_PARTS:
            quoted = pattern.replace("'", "''")
            cause = f"regexp_replace({cause}, '{quoted}', '{replacement}', 'g')"
        newest = f"{{'request_id': _request_id, 'prediction_id': _prediction_id, 'message': {message}}}"
        statement = (
            f'SELECT _status AS status, {code} AS error_code, {column} AS "column", {cause} AS cause, '
            'count(*) AS "count", min(_received_time) AS "first", max(_received_time) AS "last", '
            f"list_sort(list(DISTINCT _version)) AS versions, arg_max({newest}, _received_time) AS newest "
            'FROM log GROUP BY ALL ORDER BY "count" DESC, "first"'
        )
        with run_query(failures, Query(view, statement=statement)) as result:
            groups = [FailureGroup(**row) for batch in result.batches for row in batch.to_pylist()]
    return answered, groups
