"""What the agent says in the log of its own server: until when the log is complete, and what was counted."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mlflow_deploy_plugin.agent.progress import Progress, added
from mlflow_deploy_plugin.errors import NotInstalled
from mlflow_deploy_plugin.inference_log import LogLocation
from mlflow_deploy_plugin.inference_log.watermarks import Watermark, write_watermark
from mlflow_deploy_plugin.server.counted import left_counted, read_counted
from mlflow_deploy_plugin.server.state import WANTED, Wanted, read_state

_log = logging.getLogger(__name__)

CHANGED_SECONDS, STILL_SECONDS = 5.0, 30.0
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
        progress: Progress,
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
        if waited >= CHANGED_SECONDS:
            mark = self._mark(False)
            if waited >= STILL_SECONDS or self._told is None or _counts(mark) != _counts(self._told):
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
        progress.look(read_counted(self._state_dir), left_counted(self._state_dir))
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
            added(progress.rows("dropped"), lost),
            dict(shipped),
        )


def _counts(mark: Watermark) -> tuple[object, ...]:
    return mark.endpoints, mark.answered_rows, mark.captured_rows, mark.dropped_rows, mark.shipped_rows
