"""The erasure of a person: the rows whose key column has a value, and their labels.

A file with such rows is replaced by a file with its other rows, as in compaction
(`maintenance.py`). A compaction at the same time may have copied rows before their
erasure, so all files are searched again until none has such a row. Labels are erased
before the rows that name them. After a crash, the next call therefore continues.

Profiles and samples of the rows (`_sketches`), which monitors compute again from the
rows, are deleted for the days of the rows.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
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
from mlflow_deploy_plugin.serve.inference_log.scan import FileVanished, read_file
from mlflow_deploy_plugin.serve.inference_log.storage import LogFile
from mlflow_deploy_plugin.serve.inference_log.tables import IDENTITY, conform
from mlflow_deploy_plugin.serve.runtime.log_columns import as_key

_ROUNDS = 5
_READERS = 4

Mask = Callable[[pa.Table], pa.Array]
"""A function that returns a mask of a table's rows, [N] bool."""


@dataclass
class Erasure:
    """The erasure of the rows whose `column` has one of the `values`, compared as keys
    (`as_key`), and the numbers of erased rows and labels and of replaced files. A row
    that is in two files counts twice.
    """

    log: InferenceLog
    endpoint: str
    column: str
    values: Sequence[str]
    rows: int = 0
    labels: int = 0
    files: int = 0

    def run(self, only_count: bool = False) -> None:
        """Erase the rows and labels until a search finds none, or only count them. The
        reasons why files cannot be searched are added to `log.unreadable`.

        Raises OnnxserveError if the log is unreachable, or if rows still appear after
        some searches.
        """
        location = self.log.location
        names: set[str] = set()
        dates: set[str] = set()
        pairs = [canonical_key({self.column: value})[1:-1] for value in self.values]
        pattern = f"[{{,](?:{'|'.join(map(re.escape, pairs))})"

        def is_label(labels: pa.Table) -> pa.Array:
            """Return True for labels by the key column, and by ids of erased rows."""
            labels = conform(labels, SCHEMA)
            has_key = pc.match_substring_regex(labels.column("_key"), pattern)
            known = pa.array(names, pa.string())
            has_name = [pc.is_in(texts, known) for texts in row_names(labels)]
            return reduce(pc.or_, has_name, pc.fill_null(has_key, False))

        for _ in range(_ROUNDS):
            hours = chain.from_iterable(hour.files for hour in all_hours(self.log, self.endpoint))
            found = self._find(hours, self._is_row, [self.column, "_row"])
            dates.update(file.path.split("/")[-3] for file in found)
            for file in found:
                with suppress(FileVanished):
                    names |= self.names_only_in(file)
            days = storage.list_days(location, labels_folder(location, self.endpoint))
            label_files = chain.from_iterable(
                storage.list_files(location, folder) for _, folder in days
            )
            found_labels = self._find(label_files, is_label)
            if only_count:
                self.files = len(found) + len(found_labels)
                self.rows = sum(found.values())
                self.labels = sum(found_labels.values())
                return
            self.delete_profiles(dates)
            if not found and not found_labels:
                return
            self.labels += self._erase(found_labels, is_label)
            self.rows += self._erase(found, self._is_row)
        raise OnnxserveError(
            f"{location.shown}: rows with this {self.column} still appear, because another process "
            "writes them: run the command again",
        )

    def _is_row(self, rows: pa.Table) -> pa.Array:
        if self.column not in rows.column_names:
            return pa.array(np.zeros(len(rows), bool))
        keys = pa.array(map(as_key, self.values), pa.string())
        return pc.is_in(key_texts(rows.column(self.column)), keys)

    def _find(
        self,
        files: Iterable[LogFile],
        mask: Mask,
        columns: Sequence[str] | None = None,
    ) -> dict[LogFile, int]:
        """Return the number of matching rows of each file that has any, and 0 for a
        file that another process has replaced during the search.
        """

        def count(file: LogFile) -> int | None:
            try:
                matching = (pc.sum(mask(table)).as_py() for table in self._read(file, columns))
                return sum(rows or 0 for rows in matching) or None
            except FileVanished:
                return 0
            except (pa.ArrowException, TypeError, ValueError) as error:
                self.log.unreadable[file.path] = one_line(error)
                return None

        listed = list(files)
        with ThreadPoolExecutor(_READERS) as pool:
            counts = pool.map(count, listed)
            return {
                file: rows for file, rows in zip(listed, counts, strict=True) if rows is not None
            }

    def names_only_in(self, file: LogFile) -> set[str]:
        """Return the names by which labels identify the matching rows of the file, and
        no other row: a label of a complete request is kept with its other rows. Raises
        FileVanished if another process has replaced the file.
        """
        names: set[str] = set()
        for change, is_row in ((names.update, True), (names.difference_update, False)):
            for rows in self._read(file, [self.column, "_prediction_id", "_row"]):
                selected = rows.filter(pc.equal(self._is_row(rows), is_row))
                for texts in row_names(selected):
                    change(texts.to_pylist())
        return names

    def _read(self, file: LogFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        return read_file(self.log.location, file.path, self.log.unreadable, columns, IDENTITY)

    def _erase(self, found: Mapping[LogFile, int], mask: Mask) -> int:
        """Replace the files by files without the matching rows, and return the number
        of erased rows. A file that another process has replaced is left to the next
        search.
        """
        rows = 0
        for file, count in found.items():
            with storage.wrap_log_errors(self.log.location), suppress(FileNotFoundError):
                schema = pq.read_schema(file.path, filesystem=self.log.location.filesystem)
                folder = file.path.rpartition("/")[0]
                if replace_files(
                    self.log, folder, {file: schema}, lambda table: pc.invert(mask(table))
                ):
                    rows += count
                    self.files += 1
        return rows

    def delete_profiles(self, dates: Collection[str]) -> None:
        """Delete the profiles of these days (`date=2013-07-01`), and if there are any,
        all samples.
        """
        location = self.log.location
        if not dates:
            return
        for kind in storage.list_folder(location, f"{location.root}/{storage.SKETCHES}"):
            root = f"{kind.path}/{storage.endpoint_folder(self.endpoint)}"
            for _, folder in storage.list_days(location, root):
                if kind.path.endswith(storage.SAMPLES) or folder.rpartition("/")[2] in dates:
                    with storage.wrap_log_errors(location), suppress(FileNotFoundError):
                        location.filesystem.delete_dir(folder)
