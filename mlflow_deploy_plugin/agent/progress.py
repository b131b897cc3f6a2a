"""How far the spool is shipped: what the agent knows of it after a restart, and until when the log is complete.

`progress.json` in the state folder is replaced before the files in the spool say that something is shipped, so that
after a crash in between rows come to the log again and are not counted again. The agent of a copied state folder is
another one: it takes a name of its own and counts from zero, since what stands in the copy is counted already.
"""

import contextlib
import logging
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson

from mlflow_deploy_plugin.errors import NotInstalled
from mlflow_deploy_plugin.inference_log import LogLocation
from mlflow_deploy_plugin.inference_log.watermarks import Watermark, write_watermark
from mlflow_deploy_plugin.server.observability.capture_counters import (
    CaptureCounters,
    read_capture_counters,
    saved_capture_counters,
)
from mlflow_deploy_plugin.statedir import WANTED, Wanted, read_state, write_atomically

_log = logging.getLogger(__name__)

PROGRESS = "progress.json"

_MOST_ENDED = 16

Rows = dict[str, int]
"""By endpoint."""


@dataclass
class Totals:
    """Counts since the state folder's first day.

    Attributes:
        agent: the name under which it tells of them.
        complete_until: what the log had, in seconds since 1970, when this was written.
        shipped: rows that are in the log; `lost`: rows that were read from the spool and have no form in the log.
        counted: by segment, up to which byte its rows are in `shipped`.
        run: the server's run that `seen` is of; `earlier`: what the runs before it have counted.
        folder: the inode of the state folder: that of a copy is another one; 0: it is not known.
        ended: the last of those, which are not counted again where a server on a full disk could leave nothing newer.
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


class ShippingProgress:
    """The totals of one state folder, and until when each of its segments is in the log.

    Args:
        spool: the folder of the segments, in the state folder.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._path = spool.parent / PROGRESS
        self.totals = _adopt_totals(_read_totals(self._path), spool.parent)
        self._listed_at = self.totals.complete_until
        self._complete: dict[str, float] = {}

    @property
    def complete_until(self) -> float:
        """Every row that was answered before this moment is in the log; seconds since 1970."""
        return min([self._listed_at, *self._complete.values()])

    def listed(self, names: set[str], moment: float) -> None:
        """These are the segments; one that was not there at the last look has nothing from before that."""
        self._complete = {name: self._complete.get(name, self._listed_at) for name in names}
        self._listed_at = moment

    def reached(self, name: str, moment: float, is_gone: bool = False) -> None:
        """Everything that the segment held at `moment` is in the log."""
        self._complete[name] = moment
        if is_gone:
            del self._complete[name]

    def shipped(self, segment: str, end: int, rows: Mapping[str, int], lost: Mapping[str, int]) -> None:
        """These rows of the segment are in the log, up to the byte `end`.

        On a full disk it is known to this process alone: shipping is what makes room again, and has to go on.
        """
        totals = self.totals
        counted = {name: place for name, place in totals.counted.items() if (self._spool / name).exists()}
        after = Totals(**asdict(totals))
        after.counted = counted | {segment: end}
        after.shipped, after.lost = add_rows(totals.shipped, rows), add_rows(totals.lost, lost)
        self.totals = after
        with contextlib.suppress(OSError):
            self._write(after)

    def look(self, counted: CaptureCounters | None, before: Sequence[CaptureCounters]) -> None:
        """Takes over what the workers have counted.

        Args:
            counted: of the server that runs, or has run last.
            before: what ended servers have left: the one that was seen last, and those that nobody has seen.
        """
        for said in (*before, counted):
            if said is not None and said.run not in self.totals.ended:
                self._count(said)

    def _count(self, said: CaptureCounters) -> None:
        totals = self.totals
        if said.run != totals.run:
            for outcome, rows in totals.seen.items():
                totals.earlier[outcome] = add_rows(totals.earlier.get(outcome, {}), rows)
            totals.ended = [*totals.ended, totals.run][-_MOST_ENDED:]
            totals.run, totals.seen = said.run, {}
        totals.seen = _larger_counts(totals.seen, said.rows)

    def rows(self, outcome: str) -> Rows:
        """Rows with this outcome ("answered", "captured", "dropped"), in all runs."""
        return add_rows(self.totals.earlier.get(outcome, {}), self.totals.seen.get(outcome, {}))

    def keep(self) -> None:
        """Writes everything down.

        Raises:
            OSError: the disk is full.
        """
        self.totals.complete_until = self.complete_until
        self._write(self.totals)

    def _write(self, totals: Totals) -> None:
        write_atomically(self._path, orjson.dumps(totals))


def add_rows(rows: Mapping[str, int], more: Mapping[str, int]) -> Rows:
    """The sum by endpoint."""
    return {name: rows.get(name, 0) + more.get(name, 0) for name in {**rows, **more}}


def _larger_counts(seen: Mapping[str, Rows], rows: Mapping[str, Mapping[str, int]]) -> dict[str, Rows]:
    """Counts only grow: what is smaller was read while the files were being removed."""
    outcomes = {**seen, **rows}
    return {
        outcome: {
            name: max(seen.get(outcome, {}).get(name, 0), rows.get(outcome, {}).get(name, 0))
            for name in {**seen.get(outcome, {}), **rows.get(outcome, {})}
        }
        for outcome in outcomes
    }


def _read_totals(path: Path) -> Totals:
    """What was written down; where nothing was, or it makes no sense, a new name without any counts.

    What ended servers have left is then still to be counted, or is told of under the earlier name.
    """
    try:
        written = path.read_bytes()
    except OSError:
        return Totals(_new_name())
    with contextlib.suppress(ValueError, TypeError):
        return Totals(**orjson.loads(written))
    return Totals(_new_name(), ended=_left_runs(path.parent))


def _adopt_totals(totals: Totals, folder: Path) -> Totals:
    """The totals for the agent of this folder; of a copy, those of an agent that has counted nothing yet."""
    try:
        inode = folder.stat().st_ino
    except OSError:
        return totals
    if totals.folder in (0, inode):
        totals.folder = inode
        return totals
    name = _new_name()
    _log.warning("%s is a copy of another state folder: its agent is no longer %s, but %s", folder, totals.agent, name)
    counted_there = [*totals.ended, totals.run, *_left_runs(folder)]
    return Totals(name, totals.complete_until, counted=totals.counted, ended=counted_there[-_MOST_ENDED:], folder=inode)


def _left_runs(folder: Path) -> list[str]:
    return [left.run for left in saved_capture_counters(folder)]


def _new_name() -> str:
    host = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in socket.gethostname())
    return f"{host[:60] or 'agent'}-{uuid.uuid4().hex[:12]}"


BUSY_SECONDS, IDLE_SECONDS = 5.0, 30.0
"""Between two words while rows are counted, and while there are none."""


class WatermarkWriter:
    """Writes the watermark of one server.

    Args:
        clock: monotonic seconds.
        now: seconds since 1970.
    """

    def __init__(
        self,
        state_dir: Path,
        location: LogLocation,
        progress: ShippingProgress,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._state_dir = state_dir
        self._location = location
        self._progress = progress
        self._clock = clock
        self._now = now
        self._told_at = float("-inf")
        self._told: Watermark | None = None

    def round(self) -> None:
        """Says what is due. A log that does not take it gets it later: what is shipped there tells that it is down."""
        waited = self._clock() - self._told_at
        if waited >= BUSY_SECONDS:
            mark = self._mark(False)
            if waited >= IDLE_SECONDS or self._told is None or _counts(mark) != _counts(self._told):
                self._tell(mark)

    def end(self, is_shipped: bool) -> None:
        """The last word: with `is_shipped`, that nothing more will come."""
        self._tell(self._mark(is_shipped))

    def _tell(self, mark: Watermark) -> None:
        self._told_at = self._clock()
        try:
            self._progress.keep()
            write_watermark(self._location, mark)
        except (OSError, NotInstalled) as error:
            _log.debug("the watermark cannot be written: %s", error)
            return
        self._told = mark

    def _mark(self, ended: bool) -> Watermark:
        progress = self._progress
        progress.look(read_capture_counters(self._state_dir), saved_capture_counters(self._state_dir))
        wanted = read_state(self._state_dir / WANTED, Wanted)
        answered, shipped, lost = progress.rows("answered"), progress.totals.shipped, progress.totals.lost
        captured = {name: max(0, rows - lost.get(name, 0)) for name, rows in progress.rows("captured").items()}
        names = {*answered, *shipped, *(wanted.endpoints if wanted else ())}
        return Watermark(
            progress.totals.agent,
            tuple(sorted(names)),
            datetime.fromtimestamp(progress.complete_until, UTC),
            datetime.fromtimestamp(self._now(), UTC),
            ended,
            answered,
            captured,
            add_rows(progress.rows("dropped"), lost),
            dict(shipped),
        )


def _counts(mark: Watermark) -> tuple[object, ...]:
    return mark.endpoints, mark.answered_rows, mark.captured_rows, mark.dropped_rows, mark.shipped_rows
