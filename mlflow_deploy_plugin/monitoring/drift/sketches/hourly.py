"""Profiles of whole hours, stored beside the log, so that a window of any length costs its bins and not its rows.

LOG/_sketches/<key of the bins>/endpoint=NAME/date=YYYY-MM-DD/hours.parquet

A file has, for each hour of the day and each version that answered in it, the profile and the log files (name, size)
that it was made of; and the profiles of the day as a whole. An hour whose files are others by now, since rows came late
or compaction made them one, is made anew, and so is everything if the stored file makes no sense. An hour with a file
that cannot be read is made each time, so that the file is named each time.

The profiles follow from the log alone. If two processes make them at once, or the log takes no files from this one,
nothing is lost but time.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import numpy as np
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log import (
    DAY,
    EPOCH,
    HOUR,
    HOUR_US,
    SKETCHES,
    Hour,
    InferenceLog,
    LogFile,
    Window,
    microseconds_of,
)
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.sketches.parquet import Identity, Profiles, StoredDay, load_day, store_day
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile, coalesce_batches, merge, sketch_groups
from mlflow_deploy_plugin.monitoring.segments import is_segment
from mlflow_deploy_plugin.runtime import EVENT_TIME

Listed = Mapping[Hour, list[LogFile]]

_LISTED_BY_HOUR = 2 * DAY  # beyond, one listing of everything is less work for a bucket
_UNREADABLE = ("", -1)  # no file of the log is called so: the hour is stale


@dataclass(frozen=True)
class SketchStore:
    """The place where the profiles of one endpoint over the same bins are kept.

    Attributes:
        bins_key: names the bins (`bins.bins_digest`).
        columns: only these are read of the log; None: all, so that new ones are seen.
        segment: only rows that have the value, as text, in the column; None: all rows.
    """

    log: InferenceLog
    endpoint: str
    bins: Mapping[str, Bins]
    bins_key: str
    columns: tuple[str, ...] | None = None
    segment: tuple[str, str] | None = None

    def path(self, day: str) -> str:
        """Return the path of a day's file below the log's root."""
        key = self.bins_key
        if self.segment:
            key = hashlib.sha256(repr((key, self.segment)).encode()).hexdigest()[:32]
        if self.log.since is not None:  # of the same files it has other rows than a log that is read as a whole
            key = hashlib.sha256(f"{key} {self.log.since.isoformat()}".encode()).hexdigest()[:32]
        return f"{SKETCHES}/{key}/endpoint={self.endpoint}/date={day}/hours.parquet"


def window_profile(sketches: SketchStore, model: str, version: str, window: Window) -> Profile:
    """Return the profile of all rows that one version answered in the window; an empty one if there are no rows.

    Args:
        model, version: an empty version: those of all versions together.

    Raises:
        OnnxserveError: the log is down.
    """
    days = _by_day(_list(sketches.log, sketches.endpoint, window))
    return merge(_day_profile(sketches, listed, window, model, version) for listed in days)


def day_windows(log: InferenceLog, endpoint: str, window: Window) -> list[Window]:
    """Return the days (UTC) of the window that have rows, as windows."""
    return [
        Window(max(next(iter(day)).start, window.start), min(next(reversed(day)).end, window.end))
        for day in _by_day(_list(log, endpoint, window))
    ]


def day_profile(sketches: SketchStore, model: str, version: str, day: Window) -> Profile:
    """Return `window_profile` of one of `day_windows`: the unit that engines spread over machines (`spark.py`)."""
    return _day_profile(sketches, _list(sketches.log, sketches.endpoint, day), day, model, version)


def hour_profiles(
    sketches: SketchStore, model: str, version: str, window: Window
) -> Iterator[tuple[datetime, Profile]]:
    """Yield `window_profile` of each whole hour in the window that has rows, in order."""
    whole, _ = _hours(_list(sketches.log, sketches.endpoint, window), window)
    for hours in _by_day(whole):
        day = _day(sketches, hours, whole_is_enough=False)
        for hour in hours:
            yield hour.start, _chosen(day.hours[hour.start], model, version)


def window_versions(log: InferenceLog, endpoint: str, window: Window) -> dict[Identity, int]:
    """Return how many rows each version (model, version) answered in the window, the largest number first."""
    sketches = SketchStore(log, endpoint, {}, "versions", ("_model", "_version", EVENT_TIME))
    rows: dict[Identity, int] = {}
    for day in _by_day(_list(log, endpoint, window)):
        for profiles in _pieces(sketches, day, window):
            for identity, profile in profiles.items():
                rows[identity] = rows.get(identity, 0) + profile.rows
    return dict(sorted(rows.items(), key=lambda entry: (-entry[1], entry[0])))


def _chosen(profiles: Profiles, model: str, version: str) -> Profile:
    if not version:
        return merge(profiles[identity] for identity in sorted(profiles))
    return profiles.get((model, version), Profile(0, {}))


def _day_profile(sketches: SketchStore, listed: Listed, window: Window, model: str, version: str) -> Profile:
    return merge(_chosen(profiles, model, version) for profiles in _pieces(sketches, listed, window))


def _list(log: InferenceLog, endpoint: str, window: Window) -> Listed:
    """Return the hours that overlap the window and have rows, ascending, and their files."""
    if window.length <= _LISTED_BY_HOUR:
        return {hour: log.files(hour) for hour in log.hours(endpoint, window)}
    hours = log.all_files(endpoint).items()
    return {hour: files for hour, files in hours if hour.start < window.end and hour.end > window.start}


def _hours(listed: Listed, window: Window) -> tuple[Listed, list[Hour]]:
    """Return the hours that lie in the window as a whole, and those that it cuts."""
    whole: dict[Hour, list[LogFile]] = {}
    cut: list[Hour] = []
    for hour, files in listed.items():
        if window.start <= hour.start and hour.end <= window.end:
            whole[hour] = files
        elif hour.start < window.end and hour.end > window.start:
            cut.append(hour)
    return whole, cut


def _pieces(sketches: SketchStore, listed: Listed, window: Window) -> Iterator[Profiles]:
    """Yield profiles that together are those of the window: first of the hours that it cuts, then in the order of
    time.
    """
    whole, cut = _hours(listed, window)
    for hour in cut:
        part = Window(max(hour.start, window.start), min(hour.end, window.end))
        yield from _sketch(sketches, part).values()
    for hours in _by_day(whole):
        day = _day(sketches, hours, whole_is_enough=True)
        if len(day.files) == len(hours):  # the window takes all that the day has
            yield day.whole
        else:
            yield from (day.hours[hour.start] for hour in hours)


def _by_day(listed: Listed) -> Iterator[dict[Hour, list[LogFile]]]:
    for _, hours in groupby(listed, key=lambda hour: hour.start.date()):
        yield {hour: listed[hour] for hour in hours}


def _day(sketches: SketchStore, listed: Listed, whole_is_enough: bool) -> StoredDay:
    """Return the profiles of a day with at least these hours. Stale hours are made anew, and the day is stored."""
    files = {hour.start: some for hour, some in listed.items()}
    name = sketches.path(f"{min(files):%Y-%m-%d}")
    present = {start: [(file.path.rpartition("/")[2], file.size) for file in some] for start, some in files.items()}
    stored = load_day(sketches.log.location, name, present if whole_is_enough else None)
    stale = [start for start, made_of in present.items() if stored.files.get(start) != made_of]
    if not stale:
        return stored
    made: dict[datetime, Profiles] = {}
    for run in _runs(stale):
        made |= _sketch(sketches, run)
    for start in stale:
        stored.hours[start] = made.get(start, {})
        is_readable = not any(file.path in sketches.log.unreadable for file in files[start])
        stored.files[start] = present[start] if is_readable else [_UNREADABLE]
    parts: dict[Identity, list[Profile]] = {}
    for profiles in stored.hours.values():
        for identity, profile in profiles.items():
            parts.setdefault(identity, []).append(profile)
    stored = StoredDay(stored.files, stored.hours, {identity: merge(some) for identity, some in parts.items()})
    store_day(sketches.log.location, name, stored)
    return stored


def _runs(starts: list[datetime]) -> Iterator[Window]:
    """Yield the ascending hours as windows, as few as there can be."""
    begin = end = starts[0]
    for start in starts:
        if start > end:
            yield Window(begin, end)
            begin = start
        end = start + HOUR
    yield Window(begin, end)


def _sketch(sketches: SketchStore, window: Window) -> dict[datetime, Profiles]:
    """Return the profiles of each hour of the window, from its rows."""
    parts: dict[datetime, dict[Identity, list[Profile]]] = {}
    rows = sketches.log.batches(sketches.endpoint, window, sketches.columns)
    for table in coalesce_batches(rows):
        if sketches.segment:
            table = table.filter(is_segment(table, *sketches.segment))
            if not len(table):
                continue
        times = microseconds_of(table.column(EVENT_TIME)) // HOUR_US
        keys = pc.binary_join_element_wise(table.column("_model"), table.column("_version"), "\n")
        encoded = keys.combine_chunks().dictionary_encode()
        first = int(times.min())
        versions = np.asarray(encoded.indices).astype(np.int64)
        present, groups = np.unique((times - first) * len(encoded.dictionary) + versions, return_inverse=True)
        profiles = sketch_groups(sketches.bins, table, groups, len(present))
        for number, profile in zip(present.tolist(), profiles, strict=True):
            hour, position = divmod(number, len(encoded.dictionary))
            model, _, version = encoded.dictionary[position].as_py().rpartition("\n")
            start = EPOCH + (first + hour) * HOUR
            parts.setdefault(start, {}).setdefault((model, version), []).append(profile)
    return {start: {key: merge(some) for key, some in versions.items()} for start, versions in parts.items()}
