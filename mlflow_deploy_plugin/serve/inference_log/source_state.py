"""The state of the source of an observed endpoint, in a file of the log:
LOG/_observed/endpoint=NAME.json. It is written after the rows that it counts.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import orjson
from pydantic import AwareDatetime, TypeAdapter, ValidationError

from mlflow_deploy_plugin.serve.inference_log.stats import WATERMARKS
from mlflow_deploy_plugin.serve.inference_log.storage import (
    LogLocation,
    endpoint_folder,
    wrap_log_errors,
    write_file,
)

ProblemKind = Literal[
    "bad_row", "no_id", "no_time", "future", "conflict", "new_column", "lost_column", "unanswered"
]


@dataclass(frozen=True)
class Problem:
    """The number of rows (for columns and requests: of those) with a problem, and the
    last one by its id, or its place in the source.
    """

    count: int
    last: str


@dataclass(frozen=True)
class SourceState:
    """The progress of reading a source.

    Attributes:
        position: the position after the last row in the log, in the form of the source.
        source: the part of the spec to which the position refers.
        rows: the number of rows in the log so far.
        newest: the newest event time of these rows.
        complete_until: the start of the last complete reading.
        error: the reason why the last reading was not completed; empty if it was.
        columns: the inputs and predictions of the rows so far.
        counted: the hashes of the last faults among the problems, as base64.
    """

    position: str = ""
    source: str = ""
    rows: int = 0
    newest: AwareDatetime | None = None
    complete_until: AwareDatetime | None = None
    error: str = ""
    columns: tuple[str, ...] = ()
    problems: Mapping[ProblemKind, Problem] = field(default_factory=dict)
    counted: str = ""


_STATE = TypeAdapter(SourceState)
_LINES: Mapping[ProblemKind, str] = {
    "bad_row": "{0.count:,} rows cannot be read and are not in the log (last: {0.last})",
    "no_id": "{0.count:,} rows have no id and are not in the log (last: {0.last})",
    "no_time": "{0.count:,} rows have no readable time and are not in the log (last: {0.last})",
    "future": (
        "{0.count:,} rows have a time in the future and are not in the log (last: {0.last}); "
        "correct the clock, and read them again with --since"
    ),
    "conflict": (
        "{0.count:,} rows have the id of another row with other values; the first one of each id "
        "is kept (last: {0.last})"
    ),
    "new_column": "{0.count:,} columns are new since the first rows (last: {0.last})",
    "lost_column": "{0.count:,} columns are no longer in the source (last: {0.last})",
    "unanswered": "{0.count:,} requests have had no response for a day (last: {0.last})",
}


def describe_problems(state: SourceState) -> list[str]:
    """Return the reason why the last reading was not completed, and a line for each
    kind of problem.
    """
    problems = [_LINES[kind].format(problem) for kind, problem in state.problems.items()]
    return [state.error, *problems] if state.error else problems


def source_agent(endpoint: str) -> str:
    """Return the name of the watermark that readings of an endpoint's source write."""
    return f"observed-{endpoint}"


def read_source_state(location: LogLocation, endpoint: str) -> SourceState:
    """Return the state of an endpoint's source. It is the state before the first
    reading if the file is missing, or malformed: all rows are read again then, and left
    out. Raises OnnxserveError if the log is unreachable.
    """
    path = f"{location.root}/{_file_name(endpoint)}"
    with (
        wrap_log_errors(location),
        suppress(FileNotFoundError, ValidationError),
        location.filesystem.open_input_stream(path) as stream,
    ):
        return _STATE.validate_json(stream.read())
    return SourceState()


def write_source_state(location: LogLocation, endpoint: str, state: SourceState) -> None:
    """Replace the state of an endpoint's source. Raises OnnxserveError if the log
    cannot be written.
    """
    with wrap_log_errors(location):
        write_file(location, _file_name(endpoint), orjson.dumps(state))


def delete_source_state(location: LogLocation, endpoint: str) -> None:
    """Delete the state of a deleted endpoint's source, and its watermark. Raises
    OnnxserveError if the log cannot be changed.
    """
    mark = f"{location.root}/{WATERMARKS}/{source_agent(endpoint)}.json"
    for path in (f"{location.root}/{_file_name(endpoint)}", mark):
        with wrap_log_errors(location), suppress(FileNotFoundError):
            location.filesystem.delete_file(path)


def _file_name(endpoint: str) -> str:
    return f"_observed/{endpoint_folder(endpoint)}.json"
