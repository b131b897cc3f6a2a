"""Shipping progress: the part of the spool that is in the inference log, and the
watermark for readers of the log.

`progress.json` is written before `<segment>.shipped` in the spool. Rows that are
shipped again after a crash are therefore counted only once. The agent of a copied state
folder takes a new name and counts from zero.
"""

import contextlib
import logging
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import orjson

from mlflow_deploy_plugin.core.errors import NotInstalled
from mlflow_deploy_plugin.core.statedir.files import WANTED, read_state, write_atomically
from mlflow_deploy_plugin.core.statedir.metric_files import (
    read_capture_counters,
    saved_capture_counters,
)
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.serve.inference_log.stats import Watermark, write_watermark
from mlflow_deploy_plugin.serve.inference_log.storage import LogLocation

_log = logging.getLogger(__name__)

PROGRESS = "progress.json"
BUSY_SECONDS = 5.0
IDLE_SECONDS = 30.0
"""The intervals between two watermarks if the counts have changed, and if the counts
have not changed.
"""
_MOST_ENDED = 16

Rows = dict[str, int]
"""Numbers of rows by endpoint."""


@dataclass
class Totals:
    """The counts since the state folder was created, as stored in progress.json.

    Attributes:
        complete_until: seconds since 1970; all rows answered before this time were in
            the log at the last `save`.
        shipped: the number of rows in the log; `lost` is the number of rows that the
            log cannot store.
        counted: segment → the offset up to which the segment's rows are counted in
            `shipped` or `lost`.
        run: the run of the server whose counts are in `seen`; `earlier` contains the
            counts of earlier runs.
        ended: the newest earlier runs, whose counts may still be on the disk and must
            not be added again.
        folder: the inode of the state folder, which detects a copied folder; 0 if
            unknown.
    """

    agent: str
    complete_until: float = 0.0
    shipped: Rows = field(default_factory=dict)
    lost: Rows = field(default_factory=dict)
    counted: Rows = field(default_factory=dict)
    run: str = ""
    seen: dict[str, Rows] = field(default_factory=dict)
    earlier: dict[str, Rows] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    folder: int = 0

    @staticmethod
    def load(folder: Path) -> "Totals":
        """Return the totals of progress.json in the state folder, or new totals under a
        new name. If this file is missing, the counts of ended servers are added; if it
        is malformed, their rows are already in the log. A copy of another state folder
        counts from zero.
        """
        left_runs = [left.run for left in saved_capture_counters(folder)]
        try:
            totals = Totals(**orjson.loads((folder / PROGRESS).read_bytes()))
        except OSError:
            totals = Totals(_new_name())
        except (ValueError, TypeError):
            totals = Totals(_new_name(), ended=left_runs)
        inode = folder.stat().st_ino
        if totals.folder in (0, inode):
            totals.folder = inode
            return totals
        renamed = Totals(
            _new_name(),
            totals.complete_until,
            counted=totals.counted,
            ended=[*totals.ended, totals.run, *left_runs][-_MOST_ENDED:],
            folder=inode,
        )
        _log.warning(
            "%s is a copy of another state folder: its agent is renamed from %s to %s",
            folder,
            totals.agent,
            renamed.agent,
        )
        return renamed

    def start_run(self, run: str) -> None:
        """Add the counts in `seen` to those of earlier runs, and count for a new run of
        the server.
        """
        for outcome, rows in self.seen.items():
            self.earlier[outcome] = add_rows(
                self.earlier.get(outcome, {}),
                rows,
            )
        self.ended = [*self.ended, self.run][-_MOST_ENDED:]
        self.run = run
        self.seen = {}


class ShippingProgress:
    """The totals of a state folder, and the time up to which each segment is in the
    log.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._path = spool.parent / PROGRESS
        self.totals = Totals.load(spool.parent)
        self._listed_at = self.totals.complete_until
        self._complete: dict[str, float] = {}

    @property
    def complete_until(self) -> float:
        """The time in seconds since 1970 before which all answered rows are in the
        log.
        """
        return min([self._listed_at, *self._complete.values()])

    def set_segments(self, names: set[str], moment: float) -> None:
        """Set the list of segments at `moment`. A segment that is new in this list has
        no rows from before the last.
        """
        self._complete = {name: self._complete.get(name, self._listed_at) for name in names}
        self._listed_at = moment

    def set_complete(self, name: str, moment: float, is_gone: bool = False) -> None:
        """Record that all rows that the segment contained at `moment` are in the
        log.
        """
        if is_gone:
            self._complete.pop(name, None)
        else:
            self._complete[name] = moment

    def add_shipped(
        self,
        segment: str,
        end: int,
        rows: Mapping[str, int],
        lost: Mapping[str, int],
    ) -> None:
        """Record that these rows of the segment, up to the byte `end`, are in the log.
        If the disk is full, record the rows only in memory and do not fail, because
        further shipping frees space.
        """
        totals = self.totals
        counted = {
            name: offset for name, offset in totals.counted.items() if (self._spool / name).exists()
        }
        shipped = add_rows(totals.shipped, rows)
        lost_rows = add_rows(totals.lost, lost)
        self.totals = replace(
            totals,
            counted=counted | {segment: end},
            shipped=shipped,
            lost=lost_rows,
        )
        with contextlib.suppress(OSError):
            self._write()

    def add_counted(self) -> None:
        """Add the rows that the workers have counted: first for ended servers, then for
        the last server.
        """
        totals = self.totals
        state_dir = self._spool.parent
        for count in (*saved_capture_counters(state_dir), read_capture_counters(state_dir)):
            if count is None or count.run in totals.ended:
                continue
            if count.run != totals.run:
                totals.start_run(count.run)
            # Counts only increase. Ignore a smaller count, which was read while the
            # workers' files were being removed.
            for outcome, rows_now in count.rows.items():
                seen = totals.seen.setdefault(outcome, {})
                for name, number in rows_now.items():
                    seen[name] = max(seen.get(name, 0), number)

    def rows(self, outcome: str) -> Rows:
        """Return the rows with this outcome ("answered", "captured", "dropped") in all
        runs.
        """
        return add_rows(
            self.totals.earlier.get(outcome, {}),
            self.totals.seen.get(outcome, {}),
        )

    def save(self) -> None:
        """Write all totals to progress.json. Raises OSError if the disk is full."""
        self.totals.complete_until = self.complete_until
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, orjson.dumps(self.totals))


@dataclass
class WatermarkWriter:
    """Writes the watermark of a server to its log. `clock` is monotonic, and `now`
    returns seconds since 1970.
    """

    state_dir: Path
    location: LogLocation
    progress: ShippingProgress
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    _written_at: float = field(default=float("-inf"), init=False)
    _written: Watermark | None = field(default=None, init=False)

    def round(self) -> None:
        """Write the watermark if it is due. A failure is not logged, because shipping
        reports that the log is down.
        """
        waited = self.clock() - self._written_at
        if waited >= BUSY_SECONDS:
            mark = self._watermark(is_ended=False)
            if (
                waited >= IDLE_SECONDS
                or self._written is None
                or _counts(mark) != _counts(self._written)
            ):
                self._write(mark)

    def end(self, is_shipped: bool) -> None:
        """Write the last watermark. If `is_shipped` is True, the watermark declares
        that no more rows will follow.
        """
        self._write(self._watermark(is_shipped))

    def _write(self, mark: Watermark) -> None:
        """Save the totals and write the watermark. A failed write is repeated when the
        next watermark is due.
        """
        self._written_at = self.clock()
        try:
            self.progress.save()
            write_watermark(self.location, mark)
        except (OSError, NotInstalled) as error:
            _log.debug("the watermark cannot be written: %s", error)
            return
        self._written = mark

    def _watermark(self, is_ended: bool) -> Watermark:
        """Add the rows that the workers have counted, and return the watermark. A row
        that the log cannot store counts as dropped instead of captured.
        """
        progress = self.progress
        progress.add_counted()
        wanted = read_state(self.state_dir / WANTED, Wanted)
        answered = progress.rows("answered")
        shipped = progress.totals.shipped
        lost = progress.totals.lost
        captured = {
            name: max(0, rows - lost.get(name, 0))
            for name, rows in progress.rows("captured").items()
        }
        names = {*answered, *shipped}
        if wanted:
            names.update(wanted.endpoints)
        return Watermark(
            agent=progress.totals.agent,
            endpoints=tuple(sorted(names)),
            complete_until=datetime.fromtimestamp(progress.complete_until, UTC),
            written_at=datetime.fromtimestamp(self.now(), UTC),
            ended=is_ended,
            answered_rows=answered,
            captured_rows=captured,
            dropped_rows=add_rows(progress.rows("dropped"), lost),
            shipped_rows=dict(shipped),
        )


def agent_name(state_dir: Path) -> str:
    """Return the name of the agent of this state folder; empty without an agent."""
    try:
        return str(orjson.loads((state_dir / PROGRESS).read_bytes())["agent"])
    except (OSError, ValueError, KeyError):
        return ""


def add_rows(
    rows: Mapping[str, int],
    more: Mapping[str, int],
) -> Rows:
    return {name: rows.get(name, 0) + more.get(name, 0) for name in {**rows, **more}}


def _counts(mark: Watermark) -> tuple[object, ...]:
    """Return the parts of a watermark whose change is written early."""
    return (
        mark.endpoints,
        mark.answered_rows,
        mark.captured_rows,
        mark.dropped_rows,
        mark.shipped_rows,
    )


def _new_name() -> str:
    """Return a new name for an agent: this machine's name, and random characters."""
    host = re.sub(r"[^\w.-]|_", "-", socket.gethostname())[:60] or "agent"
    return f"{host}-{uuid.uuid4().hex[:12]}"
