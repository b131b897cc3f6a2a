"""The erasure of a person: the rows whose key column has a value, and their labels.

A file with such rows is replaced by a file with its other rows, as in compaction
(`maintenance.py`). A compaction at the same time may have copied rows before their
erasure, so all files are searched again until none has such a row. Labels are erased
before the rows that name them. After a crash, the next call therefore continues.

Profiles and samples of the rows (`_sketches`), which monitors compute again from the
rows, are deleted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.serve.inference_log import storage
from mlflow_deploy_plugin.serve.inference_log.labels import (
    SCHEMA,
    canonical_key,
    labels_folder,
    row_names,
)
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.maintenance import all_hours, replace_files
from mlflow_deploy_plugin.serve.inference_log.scan import read_folder
from mlflow_deploy_plugin.serve.inference_log.tables import IDENTITY, conform
from mlflow_deploy_plugin.serve.spool.captured_model import ColumnMask

_ROUNDS = 5

Mask = Callable[[pa.Table], pa.Array]
"""A function that returns a mask of a table's rows, [N] bool."""


@dataclass
class Erasure:
    """The erasure of the rows whose `column` has one of the `values`, compared as keys
    (`canonical_key`), and of their labels.

    Attributes:
        rows, labels: the numbers of found rows and labels. A row that is in two files
            counts twice.
    """

    log: InferenceLog
    endpoint: str
    column: str
    values: Sequence[str]
    rows: int = 0
    labels: int = 0
    _names: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Erase the rows and labels until a search finds none.

        Raises OnnxserveError if the log is unreachable, or if rows still appear after
        some searches.
        """
        location = self.log.location
        for _ in range(_ROUNDS):
            hours, days = self.search()
            if self.rows:
                for kind in storage.list_folder(location, f"{location.root}/{storage.SKETCHES}"):
                    folder = f"{kind.path}/{storage.endpoint_folder(self.endpoint)}"
                    with storage.wrap_log_errors(location), suppress(FileNotFoundError):
                        location.filesystem.delete_dir(folder)
            if not hours and not days:
                return
            self._erase(days, self._is_label)
            self._erase(hours, self._is_row)
        raise OnnxserveError(
            f"{location.shown}: rows with this {self.column} still appear, because another "
            "process writes them: run the command again"
        )

    def search(self) -> tuple[set[str], set[str]]:
        """Count the rows and labels, and return the folders that have any. The reasons
        why files cannot be searched are added to `log.unreadable`.
        """
        hours = set[str]()
        days = set[str]()
        folders = (hour.folder for hour in all_hours(self.log, self.endpoint))
        for folder, rows in self._matching(folders, self._is_row):
            hours.add(folder)
            self.rows += len(rows)
            for names in row_names(rows):
                self._names.update(names.to_pylist())
        # The label of a complete request is kept as long as one of its rows is.
        for _, rows in self._matching(hours, lambda rows: pc.invert(self._is_row(rows))):
            for names in row_names(rows):
                self._names.difference_update(names.to_pylist())
        root = labels_folder(self.log.location, self.endpoint)
        folders = (folder for _, folder in storage.list_days(self.log.location, root))
        for folder, labels in self._matching(folders, self._is_label):
            days.add(folder)
            self.labels += len(labels)
        return hours, days

    def _is_row(self, rows: pa.Table) -> pa.Array:
        keys = {canonical_key({self.column: value}) for value in self.values}
        return _has_name(rows, keys, [[self.column]])

    def _is_label(self, labels: pa.Table) -> pa.Array:
        """Return True for labels by the key column, and by names of erased rows."""
        labels = conform(labels, SCHEMA)
        pairs = (re.escape(canonical_key({self.column: value})[1:-1]) for value in self.values)
        has_key = pc.match_substring_regex(labels.column("_key"), f"[{{,](?:{'|'.join(pairs)})")
        return pc.or_(pc.fill_null(has_key, False), _has_name(labels, self._names))

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
                    replace_files(self.log, folder, {file: schema}, mask)


def _has_name(
    rows: pa.Table, names: Iterable[str], key_sets: Iterable[Sequence[str]] = ()
) -> pa.Array:
    """Return True for each row that has one of the names (`row_names`), [N] bool."""
    known = pa.array(names, pa.string())
    masks = [pc.is_in(texts, known, skip_nulls=True) for texts in row_names(rows, key_sets)]
    return reduce(pc.or_, masks, pa.repeat(False, len(rows)))


def forms_of(column: str, value: str, mask_key: Path, is_masked: bool) -> list[str]:
    """Return the value, and its hash in a masked column if the file of the key exists:
    rows from before a change of `capture.mask` have the other form. Raises
    InvalidConfig if the column is masked and the file does not exist.
    """
    if mask_key.exists():
        masked = ColumnMask(mask_key).hash_values({column: value}, frozenset([column]))
        return [value, str(masked[column])]
    if is_masked:
        raise InvalidConfig(
            f"{column} is masked in the log, and the key of the mask is not on this machine: run "
            f"the command where the server runs, or copy its {mask_key.name} to {mask_key}"
        )
    return [value]
