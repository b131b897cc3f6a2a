"""Profiles of whole hours, kept beside the log, so that a window of any length costs its bins and not its rows.

LOG/_sketches/<key of the bins>/endpoint=NAME/date=YYYY-MM-DD/hours.parquet

A file holds, for each hour of the day and each version that answered in it, the profile and the files (name, size) that
it was made of. Where the hour's files are others by now, since rows came late or compaction made them one, the hour is
made anew, and so is everything where the stored file makes no sense. An hour with a file that cannot be read is made
each time, so that the file goes on being named. Beside the hours the file has the profiles of the day as a whole.

The profiles follow from the log alone: when two processes make them at once, or the log takes no files from this one,
nothing is lost but time.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.inference_log.files import HOUR, Hour
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.rows import microseconds_of
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.inference_log.writing import write_file
from mlflow_deploy_plugin.monitoring.bins import Bins
from mlflow_deploy_plugin.monitoring.sketch import Profile, gathered, merge, sketch_groups
from mlflow_deploy_plugin.monitoring.stored import SCHEMA, profiles_to_table, table_to_profiles
from mlflow_deploy_plugin.runtime.rows import EVENT_TIME

Identity = tuple[str, str]
Profiles = dict[Identity, Profile]
Files = list[tuple[str, int]]

FOLDER = "_sketches"
_HOUR_US = 3_600_000_000
_META = b"onnxserve"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNREADABLE = ("", -1)  # no file of the log is called so: the hour is stale
_FORMAT = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sketches:
    """Where the profiles of one endpoint over the same bins are kept.

    Attributes:
        bins_key: names the bins (`bins.bins_digest`).
        columns: only these are read of the log; None: all, so that new ones are seen.
    """

    log: InferenceLog
    endpoint: str
    bins: Mapping[str, Bins]
    bins_key: str
    columns: tuple[str, ...] | None = None

    def path(self, day: str) -> str:
        """Below the log's root."""
        return f"{FOLDER}/{self.bins_key}/endpoint={self.endpoint}/date={day}/hours.parquet"


@dataclass(frozen=True)
class _Stored:
    """What is stored of a day, read as far as it is needed.

    Attributes:
        files: the files that each hour was made of.
        hours: the profiles of each hour, or nothing where `whole` is enough.
        whole: those of all hours in `files` together.
    """

    files: dict[datetime, Files]
    hours: dict[datetime, Profiles]
    whole: Profiles


def window_profile(
    log: InferenceLog,
    endpoint: str,
    model: str,
    version: str,
    window: Window,
    bins: Mapping[str, Bins],
    bins_key: str,
) -> Profile:
    """The profile of all rows that one version answered in the window; without rows one that is empty.

    Args:
        model, version: an empty version: those of all versions together.

    Raises:
        OnnxserveError: the log is down.
    """
    days = day_windows(log, endpoint, window)
    return merge(day_profile(log, endpoint, model, version, day, bins, bins_key) for day in days)


def day_windows(log: InferenceLog, endpoint: str, window: Window) -> list[Window]:
    """The window cut by days (UTC), those that have rows."""
    parts = []
    for hours in _by_day(log.hours(endpoint, window)):
        parts.append(Window(max(hours[0].start, window.start), min(hours[-1].end, window.end)))
    return parts


def day_profile(
    log: InferenceLog,
    endpoint: str,
    model: str,
    version: str,
    day: Window,
    bins: Mapping[str, Bins],
    bins_key: str,
) -> Profile:
    """As `window_profile`, of one of `day_windows`: what engines spread over machines (`spark.py`)."""
    sketches = Sketches(log, endpoint, bins, bins_key)
    return merge(_chosen(profiles, model, version) for profiles in _pieces(sketches, day))


def hour_profiles(
    log: InferenceLog,
    endpoint: str,
    model: str,
    version: str,
    window: Window,
    bins: Mapping[str, Bins],
    bins_key: str,
) -> Iterator[tuple[datetime, Profile]]:
    """As `window_profile`, of each whole hour in the window that has rows, in order."""
    sketches = Sketches(log, endpoint, bins, bins_key)
    whole, _ = _hours(log.hours(endpoint, window), window)
    for hours in _by_day(whole):
        day = _day(sketches, hours, whole_is_enough=False)
        for hour in hours:
            yield hour.start, _chosen(day.hours[hour.start], model, version)


def window_versions(log: InferenceLog, endpoint: str, window: Window) -> dict[Identity, int]:
    """How many rows each version (model, version) answered in the window, most first."""
    sketches = Sketches(log, endpoint, {}, "versions", ("_model", "_version", EVENT_TIME))
    rows: dict[Identity, int] = {}
    for profiles in _pieces(sketches, window):
        for identity, profile in profiles.items():
            rows[identity] = rows.get(identity, 0) + profile.rows
    return dict(sorted(rows.items(), key=lambda entry: (-entry[1], entry[0])))


def _chosen(profiles: Profiles, model: str, version: str) -> Profile:
    if not version:
        return merge(profiles[identity] for identity in sorted(profiles))
    return profiles.get((model, version), Profile(0, {}))


def _hours(hours: Iterable[Hour], window: Window) -> tuple[list[Hour], list[Hour]]:
    """Those that lie in the window as a whole, and those that it cuts."""
    whole: list[Hour] = []
    cut: list[Hour] = []
    for hour in hours:
        (whole if window.start <= hour.start and hour.end <= window.end else cut).append(hour)
    return whole, cut


def _pieces(sketches: Sketches, window: Window) -> Iterator[Profiles]:
    """Profiles that together are those of the window, in the order of time but for the hours that it cuts."""
    whole, cut = _hours(sketches.log.hours(sketches.endpoint, window), window)
    for hour in cut:
        part = Window(max(hour.start, window.start), min(hour.end, window.end))
        yield from _sketch(sketches, part).values()
    for hours in _by_day(whole):
        day = _day(sketches, hours, whole_is_enough=True)
        if len(day.files) == len(hours):  # the window takes all that the day has
            yield day.whole
        else:
            yield from (day.hours[hour.start] for hour in hours)


def _by_day(hours: Iterable[Hour]) -> Iterator[list[Hour]]:
    for _, group in groupby(hours, key=lambda hour: hour.start.date()):
        yield list(group)


def _day(sketches: Sketches, hours: list[Hour], whole_is_enough: bool) -> _Stored:
    """The profiles of a day with at least these hours; those that are stale are made anew, and the day is stored."""
    name = sketches.path(f"{hours[0].start:%Y-%m-%d}")
    present = {hour.start: _files(sketches.log, hour) for hour in hours}
    stored = _load(sketches.log, name, present if whole_is_enough else None)
    stale = [start for start, files in present.items() if stored.files.get(start) != files]
    if not stale:
        return stored
    made: dict[datetime, Profiles] = {}
    for run in _runs(stale):
        made |= _sketch(sketches, run)
    for start in stale:
        stored.hours[start] = made.get(start, {})
        is_readable = not any(path in sketches.log.unreadable for path in _paths(hours, start, present[start]))
        stored.files[start] = present[start] if is_readable else [_UNREADABLE]
    stored = _Stored(stored.files, stored.hours, _together(stored.hours.values()))
    _store(sketches.log, name, stored)
    return stored


def _paths(hours: list[Hour], start: datetime, files: Files) -> list[str]:
    (folder,) = (hour.folder for hour in hours if hour.start == start)
    return [f"{folder}/{name}" for name, _ in files]


def _together(hours: Iterable[Profiles]) -> Profiles:
    parts: dict[Identity, list[Profile]] = {}
    for profiles in hours:
        for identity, profile in profiles.items():
            parts.setdefault(identity, []).append(profile)
    return {identity: merge(some) for identity, some in parts.items()}


def _load(log: InferenceLog, name: str, wanted: Mapping[datetime, Files] | None) -> _Stored:
    """What is stored under the name; nothing where there is no file, or one that makes no sense.

    Args:
        wanted: where exactly these hours are stored, the day as a whole is enough.
    """
    try:
        with log.filesystem.open_input_file(f"{log.root}/{name}") as source:
            parquet = pq.ParquetFile(source)
            meta = json.loads(parquet.schema_arrow.metadata[_META])
            if meta["format"] != _FORMAT:
                return _Stored({}, {}, {})
            files = {
                datetime.fromisoformat(start): [(file, size) for file, size in made_of]
                for start, made_of in meta["files"].items()
            }
            whole = dict(zip(_identities(meta["whole"]), table_to_profiles(parquet.read_row_group(0)), strict=True))
            if files == wanted:
                return _Stored(files, {}, whole)
            hours: dict[datetime, Profiles] = {start: {} for start in files}
            profiles = table_to_profiles(parquet.read_row_group(1))
            for (start, model, version), profile in zip(meta["hours"], profiles, strict=True):
                hours[datetime.fromisoformat(start)][model, version] = profile
            return _Stored(files, hours, whole)
    except FileNotFoundError:
        return _Stored({}, {}, {})
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
        _log.warning("the stored sketches %s are made anew: %s", name, " ".join(str(error).split()))
        return _Stored({}, {}, {})


def _identities(pairs: Iterable[list[str]]) -> list[Identity]:
    return [(model, version) for model, version in pairs]


def _store(log: InferenceLog, name: str, day: _Stored) -> None:
    hours = [
        (start, identity, profile)
        for start, profiles in sorted(day.hours.items())
        for identity, profile in profiles.items()
    ]
    meta = {
        "format": _FORMAT,
        "files": {start.isoformat(): files for start, files in sorted(day.files.items())},
        "whole": list(day.whole),
        "hours": [(start.isoformat(), *identity) for start, identity, _ in hours],
    }
    schema = SCHEMA.with_metadata({_META: json.dumps(meta)})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        writer.write_table(profiles_to_table(list(day.whole.values())))
        writer.write_table(profiles_to_table([profile for _, _, profile in hours]))
    try:
        write_file(log.location, name, sink.getvalue())
    except (OSError, pa.ArrowException) as error:  # a log that takes no files: the next one sketches the rows again
        _log.debug("the sketches %s are not stored: %s", name, " ".join(str(error).split()))


def _files(log: InferenceLog, hour: Hour) -> Files:
    return [(file.path.rpartition("/")[2], file.size) for file in log.files(hour)]


def _runs(starts: list[datetime]) -> Iterator[Window]:
    """The ascending hours as windows, as few as there can be."""
    begin = end = starts[0]
    for start in starts:
        if start > end:
            yield Window(begin, end)
            begin = start
        end = start + HOUR
    yield Window(begin, end)


def _sketch(sketches: Sketches, window: Window) -> dict[datetime, Profiles]:
    """The profiles of each hour of the window, from its rows."""
    parts: dict[datetime, dict[Identity, list[Profile]]] = {}
    rows = sketches.log.batches(sketches.endpoint, window, sketches.columns)
    for table in gathered(rows):
        times = microseconds_of(table.column(EVENT_TIME)) // _HOUR_US
        keys = pc.binary_join_element_wise(table.column("_model"), table.column("_version"), "\n")
        encoded = keys.combine_chunks().dictionary_encode()
        first = int(times.min())
        versions = np.asarray(encoded.indices).astype(np.int64)
        present, groups = np.unique((times - first) * len(encoded.dictionary) + versions, return_inverse=True)
        profiles = sketch_groups(sketches.bins, table, groups, len(present))
        for number, profile in zip(present.tolist(), profiles, strict=True):
            hour, position = divmod(number, len(encoded.dictionary))
            model, _, version = encoded.dictionary[position].as_py().rpartition("\n")
            start = _EPOCH + (first + hour) * HOUR
            parts.setdefault(start, {}).setdefault((model, version), []).append(profile)
    return {start: {key: merge(some) for key, some in versions.items()} for start, versions in parts.items()}
