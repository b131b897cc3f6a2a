"""Profiles of whole hours, stored next to the log, so that the cost of a window depends
on the bins, not the rows.

LOG/_sketches/<key of the bins>/endpoint=NAME/date=YYYY-MM-DD/hours.parquet

For each hour, the file contains the names and sizes of the log files and a profile per
version. An hour is profiled again if its log files have changed. If a log file is
unreadable, the hour is profiled every time, so that the file is reported. Profiles are
computed from only the log, so two concurrent processes only duplicate work.

Each row of the stored table describes a column of a profile. A row without a name has
the profile's number of rows.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from itertools import groupby
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import NotInstalled
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
from mlflow_deploy_plugin.serve.inference_log.storage import (
    HOUR,
    SKETCHES,
    Hour,
    LogFile,
    LogLocation,
    endpoint_folder,
    write_file,
)
from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US, Window
from mlflow_deploy_plugin.watch.drift.sketches import sketch
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins
from mlflow_deploy_plugin.watch.segments import is_segment

Identity = tuple[str, str]
"""A model name and a version."""
Profiles = dict[Identity, sketch.Profile]
Files = list[tuple[str, int]]
"""Names and sizes of log files."""


_META = b"onnxserve"
_FORMAT = 4
_UNREADABLE = ("", -1)  # No log file has this name, so an hour with this entry is always stale.
_log = logging.getLogger(__name__)
_ARROW_TYPES = {
    sketch.SketchKind: pa.string(),
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
}
_PLAIN = {
    each.name: _ARROW_TYPES[each.type]
    for each in fields(sketch.ColumnSketch)[1:]
    if each.type in _ARROW_TYPES
}
"""The fields of a sketch, except its name, that are stored as single values, with their
Arrow types.
"""
_NO_COUNTS = np.empty(0, np.int64)
SCHEMA = pa.schema(
    [
        ("profile", pa.int32()),
        ("name", pa.string()),
        *_PLAIN.items(),
        ("counts", pa.list_(pa.int64())),
        ("fresh", pa.list_(pa.string())),
        ("fresh_rows", pa.list_(pa.int64())),
    ],
)


@dataclass(frozen=True)
class StoredHour:
    """The profiles of an hour, and the log files from which they were computed."""

    files: Files
    profiles: Profiles = field(default_factory=dict)


@dataclass(frozen=True)
class SketchStore:
    """The profiles of an endpoint for the same bins, of some columns (None: all), and
    of a segment, which is a column and a value as text (None: all rows).
    """

    log: InferenceLog
    endpoint: str
    bins: Mapping[str, Bins]
    bins_key: str
    columns: tuple[str, ...] | None = None
    segment: tuple[str, str] | None = None

    def load(self, day: datetime) -> dict[datetime, StoredHour]:
        """Return the stored hours of a day; empty if there is no file or the file is
        malformed.
        """
        name = self._name(day)
        table = read_beside_log(self.log.location, name)
        try:
            meta = {} if table is None else json.loads(table.schema.metadata[_META])
            if meta.get("format") != _FORMAT:
                return {}
            hours: dict[datetime, StoredHour] = {}
            for start, files in meta["files"].items():
                hours[datetime.fromisoformat(start)] = StoredHour(
                    [(file, size) for file, size in files]
                )
            profiles = table_to_profiles(table)
            for (start, model, version), profile in zip(meta["hours"], profiles, strict=True):
                hours[datetime.fromisoformat(start)].profiles[model, version] = profile
            return hours
        except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError) as error:
            _log.warning(
                "the stored sketches %s cannot be used and are computed again: %s",
                name,
                one_line(error),
            )
            return {}

    def store(self, day: datetime, hours: Mapping[datetime, StoredHour]) -> None:
        """Write the profiles of the day's hours to a file next to the log."""
        identities: list[tuple[str, ...]] = []
        profiles: list[sketch.Profile] = []
        for start, hour in hours.items():
            identities += [(start.isoformat(), *identity) for identity in hour.profiles]
            profiles += hour.profiles.values()
        meta = {
            "format": _FORMAT,
            "files": {start.isoformat(): hour.files for start, hour in hours.items()},
            "hours": identities,
        }
        table = profiles_to_table(profiles)
        write_beside_log(
            self.log.location,
            self._name(day),
            table.replace_schema_metadata({_META: json.dumps(meta)}),
        )

    def _name(self, day: datetime) -> str:
        """Return the name of the day's file next to the log, which depends on the bins,
        the segment and the start of the endpoint's rows.
        """
        key = self.bins_key
        since = self.log.since
        if self.segment or since:  # The same files have other profiles then, so the key differs.
            key = hashlib.sha256(repr((key, self.segment, since)).encode()).hexdigest()[:32]
        folder = endpoint_folder(self.endpoint)
        return f"{SKETCHES}/{key}/{folder}/date={day:%Y-%m-%d}/hours.parquet"


def window_profile(
    sketches: SketchStore,
    model: str,
    version: str,
    window: Window,
) -> sketch.Profile:
    """Return the profile of all rows in the window that one version (empty: any
    version) answered.
    """
    days: list[sketch.Profile] = []
    for day in _by_day(_list(sketches.log, sketches.endpoint, window)):
        pieces = _pieces(sketches, day, window)
        days.append(sketch.merge(_profile_of(profiles, model, version) for profiles in pieces))
    return sketch.merge(days)


def hour_profiles(
    sketches: SketchStore,
    model: str,
    version: str,
    window: Window,
) -> Iterator[tuple[datetime, sketch.Profile]]:
    """Yield the `window_profile` of each whole hour with rows in the window, in
    order.
    """
    listed = _list(sketches.log, sketches.endpoint, window)
    whole = [hour for hour in listed if _is_whole(hour, window)]
    for hours in _by_day(whole):
        for start, profiles in _hours_of_day(sketches, hours).items():
            yield start, _profile_of(profiles, model, version)


def window_versions(
    log: InferenceLog,
    endpoint: str,
    window: Window,
) -> dict[Identity, int]:
    """Return the number of rows in the window by (model, version), the most frequent
    version first.
    """
    sketches = SketchStore(log, endpoint, {}, "versions", ("_model", "_version", EVENT_TIME))
    rows: dict[Identity, int] = {}
    for day in _by_day(_list(log, endpoint, window)):
        for profiles in _pieces(sketches, day, window):
            for identity, profile in profiles.items():
                rows[identity] = rows.get(identity, 0) + profile.rows
    return dict(
        sorted(
            rows.items(),
            key=lambda entry: (-entry[1], entry[0]),
        )
    )


def _profile_of(profiles: Profiles, model: str, version: str) -> sketch.Profile:
    """Return the profile of one version; without a version, of all together."""
    if not version:
        return sketch.merge(profiles[identity] for identity in sorted(profiles))
    return profiles.get((model, version), sketch.Profile(0, {}))


def _list(log: InferenceLog, endpoint: str, window: Window) -> list[Hour]:
    """Return the hours that overlap the window and have rows, in ascending order."""
    return [*log.all_hours(endpoint, window.times)]


def _is_whole(hour: Hour, window: Window) -> bool:
    return window.start <= hour.start and hour.end <= window.end


def _pieces(sketches: SketchStore, hours: list[Hour], window: Window) -> Iterator[Profiles]:
    """Yield profiles that together cover the window: first partial hours, then whole
    hours in order.
    """
    for hour in hours:
        if not _is_whole(hour, window):
            part = Window(
                max(hour.start, window.start),
                min(hour.end, window.end),
            )
            yield from _sketch(sketches, part).values()
    whole = [hour for hour in hours if _is_whole(hour, window)]
    for hours_of_day in _by_day(whole):
        yield from _hours_of_day(sketches, hours_of_day).values()


def days_of(sketches: SketchStore, window: Window) -> list[Window]:
    """Return the parts of the window per day (UTC), of the hours that have rows."""
    return [
        Window(max(day[0].start, window.start), min(day[-1].end, window.end))
        for day in _by_day(_list(sketches.log, sketches.endpoint, window))
    ]


def _by_day(hours: list[Hour]) -> Iterator[list[Hour]]:
    for _, hours_of_day in groupby(hours, key=lambda hour: hour.start.date()):
        yield [*hours_of_day]


def _hours_of_day(sketches: SketchStore, hours: list[Hour]) -> dict[datetime, Profiles]:
    """Return the profiles of the `hours` of a day, in order. Stale hours, whose
    files have changed, are profiled again and stored. An hour with an unreadable file
    stays stale.
    """
    day = min(hour.start for hour in hours)
    stored = sketches.load(day)
    stale = [
        hour
        for hour in hours
        if hour.start not in stored or stored[hour.start].files != _made_of(hour.files)
    ]
    # Consecutive hours are read together.
    computed: dict[datetime, Profiles] = {}
    runs = groupby(enumerate(stale), key=lambda item: item[1].start - item[0] * HOUR)
    for _, run in runs:
        starts = [hour.start for _, hour in run]
        computed |= _sketch(sketches, Window(starts[0], starts[-1] + HOUR))
    for hour in stale:
        made_of = _made_of(hour.files)
        if any(file.path in sketches.log.unreadable for file in hour.files):
            made_of = [_UNREADABLE]
        stored[hour.start] = StoredHour(
            made_of,
            computed.get(hour.start, {}),
        )
    if stale:
        sketches.store(day, dict(sorted(stored.items())))
    return {hour.start: stored[hour.start].profiles for hour in hours}


def _made_of(files: Sequence[LogFile]) -> Files:
    return [
        (
            file.path.rpartition("/")[2],
            file.size,
        )
        for file in files
    ]


def _sketch(sketches: SketchStore, window: Window) -> dict[datetime, Profiles]:
    """Compute the profiles of each hour in the window from the rows of the hour."""
    parts: dict[datetime, dict[Identity, list[sketch.Profile]]] = {}
    rows = sketches.log.batches(sketches.endpoint, window, sketches.columns)
    for table in sketch.coalesce_batches(rows):
        if sketches.segment:
            table = table.filter(is_segment(table, *sketches.segment))
        for start, identity, profile in _sketch_table(sketches.bins, table):
            parts.setdefault(start, {}).setdefault(identity, []).append(profile)
    merged: dict[datetime, Profiles] = {}
    for start, versions in parts.items():
        merged[start] = {identity: sketch.merge(part) for identity, part in versions.items()}
    return merged


def _sketch_table(
    bins: Mapping[str, Bins],
    table: pa.Table,
) -> Iterator[tuple[datetime, Identity, sketch.Profile]]:
    """Yield the profile of each hour and version."""
    if not len(table):
        return
    hours = microseconds_of(table.column(EVENT_TIME)) // HOUR_US
    keys = pc.binary_join_element_wise(table.column("_model"), table.column("_version"), "\n")
    encoded = keys.combine_chunks().dictionary_encode()
    versions = encoded.dictionary.to_pylist()
    first = int(hours.min())
    numbers = (hours - first) * len(versions) + np.asarray(encoded.indices).astype(np.int64)
    for number, profile in sketch.sketch_by(bins, table, numbers):
        hour, position = divmod(number, len(versions))
        model, version = versions[position].rsplit("\n", 1)
        yield EPOCH + (first + hour) * HOUR, (model, version), profile


def read_beside_log(location: LogLocation, name: str) -> pa.Table | None:
    """Return a table that `write_beside_log` wrote; None if it does not exist or is
    malformed.
    """
    try:
        with location.filesystem.open_input_file(f"{location.root}/{name}") as source:
            return pq.read_table(source)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        _log.warning(
            "%s next to the log cannot be read and is computed again: %s",
            name,
            one_line(error),
        )
        return None


def write_beside_log(location: LogLocation, name: str, table: pa.Table) -> None:
    """Write a derived table next to the log. If writing fails, the next process
    computes the table again.
    """
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd")
    try:
        write_file(location, name, content.getvalue())
    except (OSError, pa.ArrowException, NotInstalled) as error:
        _log.debug("%s cannot be stored next to the log: %s", name, one_line(error))


def profiles_to_table(profiles: Sequence[sketch.Profile]) -> pa.Table:
    """Return a table with a row per column of each profile. Before the columns, each
    profile has a row without a name, for its number of rows.
    """
    numbers: list[int] = []
    columns: list[sketch.ColumnSketch] = []
    for number, profile in enumerate(profiles):
        columns.append(
            sketch.ColumnSketch(
                name="",
                kind="other",
                arrow_type="",
                counts=_NO_COUNTS,
                rows=profile.rows,
            ),
        )
        columns += profile.columns.values()
        numbers += [number] * (1 + len(profile.columns))
    counts = [column.counts for column in columns]
    offsets = pa.array(
        np.cumsum([0, *map(len, counts)]),
        pa.int32(),
    )
    arrays = {
        "profile": numbers,
        "name": [column.name or None for column in columns],
        **{name: list(map(attrgetter(name), columns)) for name in _PLAIN},
        "counts": pa.ListArray.from_arrays(
            offsets,
            pa.array(np.concatenate([_NO_COUNTS, *counts])),
        ),
        "fresh": [list(column.fresh) for column in columns],
        "fresh_rows": [list(column.fresh.values()) for column in columns],
    }
    return pa.table(arrays, schema=SCHEMA)


def table_to_profiles(table: pa.Table) -> list[sketch.Profile]:
    """Return the profiles in a table; raise pa.ArrowException, KeyError or ValueError
    if the table is malformed.
    """
    if table.schema.names != SCHEMA.names:
        raise ValueError("the table does not have the columns of a profile")
    others = ("profile", "name", "fresh", "fresh_rows")
    plain = {name: table.column(name).to_pylist() for name in (*others, *_PLAIN)}
    stored = table.column("counts").combine_chunks()
    counts = stored.values.to_numpy(zero_copy_only=False)
    offsets = stored.offsets.to_numpy().tolist()
    profiles: list[tuple[int, dict[str, sketch.ColumnSketch]]] = []
    for line, name in enumerate(plain["name"]):
        if name is None:
            if plain["profile"][line] != len(profiles):
                raise ValueError("a profile is missing in the table")
            profiles.append((plain["rows"][line], {}))
            continue
        fresh = zip(plain["fresh"][line] or (), plain["fresh_rows"][line] or (), strict=True)
        profiles[-1][1][name] = sketch.ColumnSketch(
            name=name,
            counts=counts[offsets[line] : offsets[line + 1]],
            fresh=dict(fresh),
            **{key: plain[key][line] for key in _PLAIN},
        )
    return [sketch.Profile(rows, columns) for rows, columns in profiles]


def profile_to_parquet(profile: sketch.Profile) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(profiles_to_table([profile]), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content
