"""When a window may be judged, and how long is waited after a failure: times in, times out.

A window is due once it is over and `grace` (for a monitor of labels also `labels_within`) has passed; with a schedule,
at the schedule's first time after that. Nothing has to fire at that time: whoever looks later finds the window due
still, so windows that nobody looked at are made up.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log.watermarks import Watermark
from mlflow_deploy_plugin.inference_log.windows import Window, microseconds, window_at
from mlflow_deploy_plugin.spec import MONTHS, WEEKDAYS, MonitorSpec, duration_seconds, load_time_zone, validate_crontab
from mlflow_deploy_plugin.store import Endpoint
from mlflow_deploy_plugin.store.monitors import MonitorState, MonitorWindow

MAX_BACKOFF = timedelta(minutes=10)
_FIRST_PAUSE = timedelta(seconds=15)
_MOST_JITTER = timedelta(seconds=30)
_DAYS = (*WEEKDAYS, "sun")
_MONTH = re.compile("|".join(MONTHS))
_MICROSECOND = timedelta(microseconds=1)


def due_at(endpoint: str, monitor: str, spec: MonitorSpec, end: datetime) -> datetime:
    """The moment from which a window that ends at `end` may be judged.

    Raises:
        InvalidConfig: the schedule or its time zone cannot be read, or there is never a time that fits it.
    """
    ready = end + timedelta(seconds=duration_seconds(spec.grace))
    if spec.kind == "performance" and spec.labels_within is not None:
        ready += timedelta(seconds=duration_seconds(spec.labels_within))
    if spec.schedule is not None:
        fires = crontab_trigger(spec.schedule, spec.time_zone).get_next_fire_time(None, ready - _MICROSECOND)
        if fires is None:
            raise InvalidConfig(f"schedule {spec.schedule!r} names a time that never comes")
        ready = fires.astimezone(UTC)
    return ready + jitter(endpoint, monitor, spec)


def jitter(endpoint: str, monitor: str, spec: MonitorSpec) -> timedelta:
    """At most 30 s and a hundredth of the window, always the same for a monitor: not all begin at the full hour."""
    most = min(_MOST_JITTER, timedelta(seconds=duration_seconds(spec.every)) / 100)
    number = int.from_bytes(hashlib.blake2b(f"{endpoint}\n{monitor}".encode(), digest_size=4).digest())
    return most * (number / 2**32)


@lru_cache(maxsize=256)
def crontab_trigger(schedule: str, time_zone: str) -> BaseTrigger:
    """The times of a line like `15 6 * * 1-5`, with what crontab(5) says: 0 and 7 are Sunday, and where a day of the
    month and a day of the week are both given, either will do. (APScheduler counts from Monday, and wants both.)

    Times that a clock change leaves out come an hour later; those that it doubles come twice.

    Raises:
        InvalidConfig: it cannot be read.
    """
    zone = load_time_zone(time_zone)
    try:
        minute, hour, day, month, weekday = validate_crontab(schedule).split()
        weekday = ",".join(_weekdays(part) for part in weekday.split(","))
        month = _MONTH.sub(lambda name: str(MONTHS.index(name[0]) + 1), month.lower())
        given = {"minute": minute, "hour": hour, "month": month, "timezone": zone}
        if day.startswith("*") or weekday.startswith("*"):
            return CronTrigger(day=day, day_of_week=weekday, **given)
        return OrTrigger([CronTrigger(day=day, **given), CronTrigger(day_of_week=weekday, **given)])
    except (ValueError, IndexError) as error:
        raise InvalidConfig(f"schedule {schedule!r}: {error}") from None


def windows_between(spec: MonitorSpec, begin: datetime, end: datetime) -> range:
    """Starts, in microseconds since 1970, of the monitor's windows that lie in [begin, end) as a whole."""
    length = duration_seconds(spec.every) * 1_000_000
    first = -(-microseconds(begin) // length) * length
    return range(first, microseconds(end) - length + 1, length)


def window_from(spec: MonitorSpec, start_us: int) -> Window:
    """The monitor's window that begins there."""
    return window_at(start_us, spec.every)


def window_of(spec: MonitorSpec, time: datetime) -> Window:
    """The monitor's window that holds the time."""
    return window_at(microseconds(time), spec.every)


def backoff(attempts: int) -> timedelta:
    """How long is waited after so many failed attempts: 15 s, twice as long each time, at most 10 minutes."""
    return min(MAX_BACKOFF, _FIRST_PAUSE * (1 << min(attempts - 1, 16)))


def _weekdays(part: str) -> str:
    """One part of a weekday field day by day: `1-5` is mon,…,fri, `5-7` and `fri-sun` are fri,sat,sun."""
    days, slash, step = part.lower().partition("/")
    first, dash, last = days.partition("-")
    if first == "*":
        return part
    begin, end = _day(first), _day(last) if dash else 6 if slash else _day(first)
    if dash and last == _DAYS[0]:
        end = 7
    numbers = range(begin, end + 1, int(step) if slash else 1)
    return ",".join(_DAYS[number] for number in numbers)


def _day(text: str) -> int:
    return int(text) if text.isdigit() else _DAYS.index(text)


MAX_CATCH_UP = 100
"""Windows that are made up by themselves; a person may ask for more."""


@dataclass(frozen=True)
class DueWindow:
    """The oldest window that is due and was not begun.

    Attributes:
        left_out: windows before it that are not made up.
        left_out_from: where the first of them begins.
    """

    window: Window
    left_out: int = 0
    left_out_from: datetime | None = None


def next_due_window(
    endpoint: Endpoint, monitor: str, spec: MonitorSpec, state: MonitorState, now: datetime, most: int = MAX_CATCH_UP
) -> DueWindow | None:
    """None where nothing is due; of more than `most` windows the newest.

    A monitor begins with the window that holds the endpoint's creation. Where the clock has gone back behind what was
    judged already, it goes on with the window that holds now: what was judged too early is judged again when its rows
    come (`late.py`).

    Raises:
        InvalidConfig: the schedule cannot be read.
    """
    starts = windows_between(spec, _begin(endpoint, spec, state, now), now)
    due = _count_due(endpoint, monitor, spec, starts, now)
    if due == 0:
        return None
    left_out = max(0, due - most)
    first = window_from(spec, starts[0]).start if left_out else None
    return DueWindow(window_from(spec, starts[left_out]), left_out, first)


def next_due_time(endpoint: Endpoint, monitor: str, spec: MonitorSpec, state: MonitorState, now: datetime) -> datetime:
    """When the next window may be judged; in the past where it waits already. Raises as `next_window`."""
    begin = _begin(endpoint, spec, state, now)
    first = windows_between(spec, begin, begin + timedelta(seconds=2 * window_of(spec, begin).length.total_seconds()))
    return due_at(endpoint.name, monitor, spec, window_from(spec, first[0]).end)


def oldest_unjudged_start(
    endpoint: Endpoint, monitor: str, spec: MonitorSpec, state: MonitorState, now: datetime
) -> datetime:
    """Where the oldest window begins that is not written down yet and will be, however long ago somebody looked: now,
    or when the first one is due. Raises as `next_window`."""
    begin = _begin(endpoint, spec, state, now)
    over = windows_between(spec, begin, now)
    if not over:
        return begin
    first_due = due_at(endpoint.name, monitor, spec, window_from(spec, over[0]).end)
    left_out = max(0, _count_due(endpoint, monitor, spec, over, max(now, first_due)) - MAX_CATCH_UP)
    return window_from(spec, over[left_out]).start


def oldest_pending(windows: Sequence[MonitorWindow], now: datetime) -> MonitorWindow | None:
    """Of windows that are written down and not judged the oldest, where it may be tried; those behind it wait.

    A time that lies further ahead than the longest pause comes from a clock that was wrong, and does not count.
    """
    if not windows:
        return None
    oldest = min(windows, key=lambda window: (window.start, window.revision))
    is_waiting = oldest.not_before is not None and now < oldest.not_before <= now + MAX_BACKOFF
    return None if is_waiting else oldest


def _begin(endpoint: Endpoint, spec: MonitorSpec, state: MonitorState, now: datetime) -> datetime:
    created = window_of(spec, endpoint.created_at).start
    begin = created if state.made_up_to is None else max(state.made_up_to, created)
    return min(begin, window_of(spec, now).start)


def _count_due(endpoint: Endpoint, monitor: str, spec: MonitorSpec, starts: range, now: datetime) -> int:
    """How many of the windows that begin there, ascending, are due."""
    return bisect_right(
        starts, now, key=lambda start: due_at(endpoint.name, monitor, spec, window_from(spec, start).end)
    )


SILENT_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class Readiness:
    """What the agents of an endpoint say.

    Attributes:
        complete_until: every row that came before is in the log; None: no agent is waited for.
        notes: which agents are not waited for, and why.
    """

    complete_until: datetime | None
    notes: tuple[str, ...] = ()

    def covers(self, time: datetime) -> bool:
        return self.complete_until is None or self.complete_until >= time


def readiness(marks: Sequence[Watermark], endpoint: str, now: datetime) -> Readiness:
    """Of the agents that may still ship rows: not of those that have ended, or that say nothing for an hour.

    One whose last word lies more than an hour ahead has a wrong clock, and is not waited for either.
    """
    waited_for: list[datetime] = []
    notes = []
    for mark in marks:
        if endpoint not in mark.endpoints or mark.ended:
            continue
        if now - mark.written_at > SILENT_AFTER:
            notes.append(
                f"the agent {mark.agent} says nothing since {mark.written_at:%Y-%m-%d %H:%M:%S} UTC: its rows are not "
                "waited for"
            )
        elif mark.written_at - now > SILENT_AFTER:
            notes.append(f"the clock of the agent {mark.agent} is ahead by an hour or more: it is not waited for")
        else:
            waited_for.append(mark.complete_until)
    return Readiness(min(waited_for, default=None), tuple(notes))
