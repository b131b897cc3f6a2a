"""Watermarks: each agent writes how far the log is complete, and whether anything was lost.

    LOG/_watermarks/<agent>.json

An agent belongs to one state folder, however often its process is started anew. Its counts go on from the folder's
first day, so that a reader can compare the answered rows with the rows in the log. The watermark of an agent that is
gone for `GONE_AFTER` is deleted, and its counts with it.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import orjson
from pyarrow import fs

from mlflow_deploy_plugin.inference_log.storage import LogLocation, write_file

WATERMARKS = "_watermarks"
"""The folder below the log's root."""
GONE_AFTER = timedelta(days=30)
"""A living agent writes its watermark every half minute."""
_COUNTS = ("answered_rows", "captured_rows", "dropped_rows", "shipped_rows")


@dataclass(frozen=True)
class Watermark:
    """The last watermark of one agent.

    Attributes:
        agent: its name, the same after a restart.
        endpoints: the endpoints that its server serves, or has served.
        complete_until: every row that was answered before this moment is in the log, unless it was dropped.
        written_at: when the watermark was written.
        ended: the server was shut down and all that it captured is in the log: there is nothing to wait for.
        answered_rows: by endpoint, rows that were answered, captured or not.
        captured_rows: answered rows that are in the log, or on their way to it. The rest was left out as the spec says
            (`capture.fraction`, `capture.max_rows_per_request`), or is in `dropped_rows`.
        dropped_rows: rows that should have been captured and were not, or that were lost on the way to the log.
        shipped_rows: rows that are in the log. No count includes rows of shadows.
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
    """Write the agent's watermark in place of its last one.

    Raises:
        OSError: the log does not take it.
    """
    write_file(location, f"{WATERMARKS}/{mark.agent}.json", orjson.dumps(mark))


def read_watermarks(location: LogLocation) -> list[Watermark]:
    """Return the watermark of every agent, by name; a malformed one is left out.

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
    """Delete the watermarks that were written `GONE_AFTER` ago or earlier, and return the agents' names.

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
    """Parse what `write_watermark` wrote; return None for anything else."""
    try:
        parsed = orjson.loads(content)
        return Watermark(
            str(parsed["agent"]),
            tuple(parsed["endpoints"]),
            datetime.fromisoformat(parsed["complete_until"]).astimezone(UTC),
            datetime.fromisoformat(parsed["written_at"]).astimezone(UTC),
            bool(parsed["ended"]),
            *({str(name): int(rows) for name, rows in parsed[kind].items()} for kind in _COUNTS),
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None
