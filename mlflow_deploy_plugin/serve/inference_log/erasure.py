"""The erasure of a person: the rows whose key column has a value, and their labels.

A file with such rows is replaced by a file with its other rows, as in compaction
(`maintenance.py`). A compaction at the same time may have copied rows before their
erasure, so all files are searched again until none has such a row. Labels are erased
before the rows that name them. After a crash, the next call therefore continues.

Profiles and samples of the rows (`_sketches`), which monitors compute again from the
rows, are deleted for the days of the rows.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.inference_log import storage
from mlflow_deploy_plugin.serve.inference_log.labels import (
    SCHEMA,
    canonical_key,
    key_texts,
    labels_folder,
    row_names,
)
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.maintenance import all_hours, replace_files
from mlflow_deploy_plugin.serve.inference_log.scan import read_folder
from mlflow_deploy_plugin.serve.inference_log.tables import IDENTITY, conform
from mlflow_deploy_plugin.serve.runtime.log_columns import as_key

_ROUNDS = 5

Mask = Callable[[pa.Table], pa.Array]
"""A function that returns a mask of a table's rows, [N] bool."""


@dataclass
class Erasure:
    """The erasure of the rows whose `column` has one of the `values`, compared as keys
    (`as_key`).

    Attributes:
        rows, labels: the numbers of found rows and labels. A row that is in two files
            counts twice.
        files: the number of replaced files.
        profiles: the number of deleted folders of profiles and samples.
    """

    log: InferenceLog
    endpoint: str
    column: str
    values: Sequence[str]
    rows: int = 0
    labels: int = 0
    files: int = 0
    profiles: int = 0
    _names: set[str] = field(default_factory=set)

    def run(self, only_count: bool = False) -> None:
        """Erase the rows and labels until a search finds none, or only count them. The
        reasons why files cannot be searched are added to `log.unreadable`.

        Raises OnnxserveError if the log is unreachable, or if rows still appear after
        some searches.
        """
        location = self.log.location
        profiled: set[str] = set()
        for _ in range(_ROUNDS):
            all_folders = [hour.folder for hour in all_hours(self.log, self.endpoint)]
            hours = set[str]()
            for folder, rows in self._matching(all_folders, self._is_row):
                hours.add(folder)
                self.rows += len(rows)
                for texts in row_names(rows):
                    self._names.update(texts.to_pylist())
            # The label of a complete request is kept as long as one of its rows is.
            for _, rows in self._matching(hours, lambda rows: pc.invert(self._is_row(rows))):
                for texts in row_names(rows):
                    self._names.difference_update(texts.to_pylist())
            listed = storage.list_days(location, labels_folder(location, self.endpoint))
            days = set[str]()
            for folder, labels in self._matching([day for _, day in listed], self._is_label):
                days.add(folder)
                self.labels += len(labels)
            if only_count:
                return
            profiled.update(folder.split("/")[-2] for folder in hours)
            self.delete_profiles(profiled)
            if not hours and not days:
                return
            self._erase(days, self._is_label)
            self._erase(hours, self._is_row)
        raise OnnxserveError(
            f"{location.shown}: rows with this {self.column} still appear, because another process "
            "writes them: run the command again",
        )

    def _is_row(self, rows: pa.Table) -> pa.Array:
        if self.column not in rows.column_names:
            return pa.repeat(False, len(rows))
        keys = pa.array(map(as_key, self.values), pa.string())
        return pc.is_in(key_texts(rows.column(self.column)), keys)

    def _is_label(self, labels: pa.Table) -> pa.Array:
        """Return True for labels by the key column, and by names of erased rows."""
        labels = conform(labels, SCHEMA)
        pairs = (re.escape(canonical_key({self.column: value})[1:-1]) for value in self.values)
        has_key = pc.match_substring_regex(labels.column("_key"), f"[{{,](?:{'|'.join(pairs)})")
        names = pa.array(self._names, pa.string())
        has_name = [pc.is_in(texts, names) for texts in row_names(labels)]
        return reduce(pc.or_, has_name, pc.fill_null(has_key, False))

    def _matching(self, folders: Iterable[str], mask: Mask) -> Iterator[tuple[str, pa.Table]]:
        """Yield the matching rows of the folders, without most columns, in tables."""
        columns = (self.column, "_prediction_id", "_row", "_key")
        for folder in folders:
            for table in read_folder(
                self.log.location,
                folder,
                self.log.unreadable,
                lambda rows: rows.filter(mask(rows)),
                columns,
                IDENTITY,
            ):
                if len(table):
                    yield folder, table

    def _erase(self, folders: Iterable[str], mask: Mask) -> None:
        """Replace the files with matching rows. A file that cannot be read, or that
        another process has replaced, is left to the next search.
        """
        location = self.log.location
        for folder in folders:
            for file in storage.list_files(location, folder):
                with suppress(OSError, pa.ArrowException):
                    schema = pq.read_schema(file.path, filesystem=location.filesystem)
                    group = {file: schema}
                    self.files += replace_files(
                        self.log, folder, group, lambda rows: pc.invert(mask(rows))
                    )

    def delete_profiles(self, days: Collection[str]) -> None:
        """Delete the profiles of these days (`date=2013-07-01`), and if there are any,
        all samples.
        """
        location = self.log.location
        for kind in storage.list_folder(location, f"{location.root}/{storage.SKETCHES}"):
            root = f"{kind.path}/{storage.endpoint_folder(self.endpoint)}"
            for _, folder in storage.list_days(location, root):
                is_sample = bool(days) and kind.path.endswith(storage.SAMPLES)
                if is_sample or folder.rpartition("/")[2] in days:
                    with storage.wrap_log_errors(location), suppress(FileNotFoundError):
                        location.filesystem.delete_dir(folder)
                        self.profiles += 1
