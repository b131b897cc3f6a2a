"""`onnxserve errors`: the failed requests of an endpoint by cause."""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from mlflow_deploy_plugin.cli.log import open_user_log, time_text, warn_of_unreadable
from mlflow_deploy_plugin.cli.options import option, output_option, show_result, usage_errors
from mlflow_deploy_plugin.errors import REMEDIES

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


@click.command()
@click.argument("name")
@option("--last", default="24h", metavar="DURATION", help="Maximum age by the time of receipt: 90s, 1h, 7d.")
@output_option
def errors(name: str, last: str, output: str) -> None:
    """Group the failed requests of the endpoint NAME by cause.

    A cause is a status, an error code, a column and a message without values. Only captured requests are counted.

    \b
      onnxserve errors flights --last 24h
      onnxserve errors flights --last 7d -o json
    """
    from mlflow_deploy_plugin.inference_log import Query, TimeRange, View, run_query
    from mlflow_deploy_plugin.inference_log.reader import require_endpoint, view_schema
    from mlflow_deploy_plugin.inference_log.windows import time_before

    with usage_errors():
        view = View(name, TimeRange(received_from=time_before(datetime.now(UTC), last, "--last")), labels=False)
    opened, answered, causes = open_user_log(), 0, list[dict[str, Any]]()
    if name in (failures := opened.failures).endpoints():
        with run_query(failures, Query(view, statement=_statement(view_schema(failures, view).names))) as result:
            causes = [row for batch in result.batches for row in batch.to_pylist()]
    else:
        require_endpoint(opened, name)
    if name in opened.endpoints():
        with run_query(opened, Query(view, "count(*) FILTER (_row = 0)")) as result:
            answered = sum(sum(batch.column(0).to_pylist()) for batch in result.batches)
    failed = sum(cause["count"] for cause in causes)
    for cause in causes:
        cause["share"] = cause["count"] / (answered + failed)
        cause["remedy"] = REMEDIES.get(cause["error_code"], "").format(name)
    document = {"answered": answered, "failed": failed, "causes": causes}
    show_result(output, document, _lines(f"failed in the last {last}", **document))
    warn_of_unreadable(opened)


def _statement(known: Collection[str]) -> str:
    """Return the SQL that groups the failures, which have the columns `known`. `newest` is the last request of a cause.

    Texts are empty if `capture` does not keep them.
    """
    reason = (name if name in known else "NULL::VARCHAR" for name in ("_error_code", "_column", "_message"))
    code, column, message = (f"ifnull({name}, '')" for name in reason)
    cause = message
    for pattern, replacement in _VARIABLE_PARTS:
        quoted = pattern.replace("'", "''")
        cause = f"regexp_replace({cause}, '{quoted}', '{replacement}', 'g')"
    newest = f"{{'request_id': _request_id, 'prediction_id': _prediction_id, 'message': {message}}}"
    return (
        f'SELECT _status AS status, {code} AS error_code, {column} AS "column", {cause} AS cause, count(*) AS "count", '
        f'min(_received_time) AS "first", max(_received_time) AS "last", list_sort(list(DISTINCT _version)) AS versions'
        f', arg_max({newest}, _received_time) AS newest FROM log GROUP BY ALL ORDER BY "count" DESC, "first"'
    )


def _lines(when: str, answered: int, failed: int, causes: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{failed:,} of {answered + failed:,} requests {when}" if failed else f"no request {when}"
    for cause in causes:
        column, newest = f" column {cause['column']!r}" if cause["column"] else "", cause["newest"]
        yield f"{cause['count']:,} ({cause['share']:.2%})  {cause['status']} {cause['error_code']}{column}"
        yield f"  time      {time_text(cause['first'])} to {time_text(cause['last'])}"
        yield f"  versions  {', '.join(cause['versions'])}"
        yield f"  example   {newest['message'] or 'the message is not captured if capture drops or masks columns'}"
        yield f"            request {newest['request_id']}, prediction {newest['prediction_id']}"
        if cause["remedy"]:
            yield f"  remedy    {cause['remedy']}"
