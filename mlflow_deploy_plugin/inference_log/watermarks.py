"""Watermarks: how far the log is complete, and whether anything was lost, as each agent says it.

    LOG/_watermarks/<agent>.json

An agent is that of one state folder, however often its process is started anew. Its counts go on from the folder's
first day, so that a reader compares what was answered with what is in the log. What an agent has said that is gone for
`GONE_AFTER` is deleted, and its counts with it.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

import orjson
from pyarrow import fs

from mlflow_deploy_plugin.inference_log.storage import LogLocation, write_file

WATERMARKS = "_watermarks"
"""The folder below the log's root."""
GONE_AFTER = timedelta(days=30)
"""An agent that lives says something every half minute."""


@dataclass(frozen=True)
class Watermark:
    """What one agent has last said.

    Attributes:
        agent: its name, the same after a restart.
        endpoints: those that its server serves, or has served.
        complete_until: every row that was answered before this moment is in the log, unless it was dropped.
        written_at: when this was said.
        ended: the server was shut down and all that it had captured is in the log: nothing is to be waited for.
        answered_rows: by endpoint, rows that were answered, captured or not.
        captured_rows: rows of those that are in the log, or on their way to it. The rest was left out as the spec says
            (`capture.fraction`, `capture.max_rows_per_request`), or is in `dropped_rows`.
        dropped_rows: rows that should have been captured and were not, or that were lost on the way to the log.
        shipped_rows: rows that are in the log. Rows of shadows stand in none of these.
    """

    agent: str
    endpoints: tuple[str, ...]
    complete_until: datetime
    written_at: datetime
    ended: bool = False
    answered_rows: Mapping[str, int] = field(default_factory=dict)
    captured_rows: Mapping[str, int] = field(default_factory=dict)
    dropped_rows: Mapping[str, int] = field(default_factory=dict)
    shipped_rows: Mapping[str, int] = field(default_factory=dict)


def write_watermark(location: LogLocation, mark: Watermark) -> None:
    """Replaces what the agent has said before.

    Raises:
        OSError: the log does not take it.
    """
    write_file(location, f"{WATERMARKS}/{mark.agent}.json", orjson.dumps(mark))


def read_watermarks(location: LogLocation) -> list[Watermark]:
    """What every agent has last said, by name; one that cannot be understood is left out.

    Raises:
        OSError: the log cannot be read.
    """
    marks = []
    for info in _files(location):
        with suppress(FileNotFoundError):  # it is gone for good
            with location.filesystem.open_input_stream(info.path) as stream:
                content = stream.read()
            if (mark := parse_watermark(content)) is not None:
                marks.append(mark)
    return marks


def expire_watermarks(location: LogLocation, now: datetime) -> list[str]:
    """Deletes what was written `GONE_AFTER` ago and earlier, and gives the agents' names.

    Raises:
        OSError: the log cannot be written.
    """
    gone = [info for info in _files(location) if info.mtime is not None and info.mtime + GONE_AFTER <= now]
    for info in gone:
        with suppress(FileNotFoundError):
            location.filesystem.delete_file(info.path)
    return [PurePosixPath(info.path).stem for info in gone]


def _files(location: LogLocation) -> Iterator[fs.FileInfo]:
    selector = fs.FileSelector(str(PurePosixPath(location.root, WATERMARKS)), allow_not_found=True)
    for info in sorted(location.filesystem.get_file_info(selector), key=lambda info: str(info.path)):
        name = PurePosixPath(info.path).name
        if info.type == fs.FileType.File and name.endswith(".json") and not name.startswith("."):
            yield info


def parse_watermark(content: bytes) -> Watermark | None:
    """What `write_watermark` wrote; None: it is something else."""
    try:
        said = orjson.loads(content)
        return Watermark(
            str(said["agent"]),
            tuple(said["endpoints"]),
            _moment(said["complete_until"]),
            _moment(said["written_at"]),
            bool(said["ended"]),
            *({str(name): int(rows) for name, rows in said[kind].items()} for kind in _COUNTS),
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None


_COUNTS = ("answered_rows", "captured_rows", "dropped_rows", "shipped_rows")


def _moment(said: Any) -> datetime:
    return datetime.fromisoformat(said).astimezone(UTC)
