"""The file of a day's profiles: one for each hour and version, what files it was made of, and the day as a whole."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import NotInstalled
from mlflow_deploy_plugin.inference_log.storage import LogLocation, write_file
from mlflow_deploy_plugin.monitoring.drift.sketches.parquet import (
    SCHEMA,
    profiles_to_table,
    table_to_profiles,
)
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile

Identity = tuple[str, str]
"""Model and version."""
Profiles = dict[Identity, Profile]
Files = list[tuple[str, int]]
"""Names and sizes."""

_META = b"onnxserve"
_FORMAT = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredDay:
    """A day, read as far as it is needed.

    Attributes:
        files: the files that each hour was made of.
        hours: the profiles of each hour, or nothing where `whole` is enough.
        whole: those of all hours in `files` together.
    """

    files: dict[datetime, Files]
    hours: dict[datetime, Profiles]
    whole: Profiles


def load_day(location: LogLocation, name: str, wanted: Mapping[datetime, Files] | None) -> StoredDay:
    """What is stored under the name; nothing where there is no file, or one that makes no sense.

    Args:
        wanted: where exactly these hours are stored, the day as a whole is enough.
    """
    try:
        with location.filesystem.open_input_file(f"{location.root}/{name}") as source:
            parquet = pq.ParquetFile(source)
            meta = json.loads(parquet.schema_arrow.metadata[_META])
            if meta["format"] != _FORMAT:
                return StoredDay({}, {}, {})
            files = {
                datetime.fromisoformat(start): [(file, size) for file, size in made_of]
                for start, made_of in meta["files"].items()
            }
            whole = dict(zip(_identities(meta["whole"]), table_to_profiles(parquet.read_row_group(0)), strict=True))
            if files == wanted:
                return StoredDay(files, {}, whole)
            hours: dict[datetime, Profiles] = {start: {} for start in files}
            profiles = table_to_profiles(parquet.read_row_group(1))
            for (start, model, version), profile in zip(meta["hours"], profiles, strict=True):
                hours[datetime.fromisoformat(start)][model, version] = profile
            return StoredDay(files, hours, whole)
    except FileNotFoundError:
        return StoredDay({}, {}, {})
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
        _log.warning("the stored sketches %s are made anew: %s", name, " ".join(str(error).split()))
        return StoredDay({}, {}, {})


def _identities(pairs: Iterable[list[str]]) -> list[Identity]:
    return [(model, version) for model, version in pairs]


def store_day(location: LogLocation, name: str, day: StoredDay) -> None:
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
    write_beside_log(location, name, sink.getvalue())


def write_beside_log(location: LogLocation, name: str, content: pa.Buffer) -> None:
    """Writes what follows from the log beside it; where it takes no files, the next one works it out again."""
    try:
        write_file(location, name, content)
    except (OSError, pa.ArrowException, NotInstalled) as error:
        _log.debug("%s is not kept beside the log: %s", name, " ".join(str(error).split()))
