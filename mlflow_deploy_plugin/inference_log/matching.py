"""How many labels have their row in the log, and labels that come without a server."""

from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.inference_log.columns import Array
from mlflow_deploy_plugin.inference_log.label_join import RowKeys, label_keys
from mlflow_deploy_plugin.inference_log.labels import LABELS
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.storage import wrap_log_errors, write_file
from mlflow_deploy_plugin.inference_log.view import View, view_tables
from mlflow_deploy_plugin.runtime import EVENT_TIME


class LabelMatches:
    """What labels call their rows, each once, and which of them a row has; 9 bytes each."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, ...], list[Array]] = {}
        self._names: dict[tuple[str, ...], Array] = {}
        self._found: dict[tuple[str, ...], Array] = {}

    def add(self, labels: pa.Table) -> None:
        """Takes the names of labels, a table of `labels.SCHEMA`; before any row is looked at."""
        for kind, _, hashes in label_keys(labels):
            self._parts.setdefault(kind, []).append(np.unique(hashes))

    def mark(self, table: pa.Table) -> None:
        """Marks what one of these rows of the log is called."""
        rows = RowKeys(table)
        for kind, names in self._all().items():
            self._found[kind] |= np.isin(names, rows.of_kind(kind), assume_unique=True)
            rows.forget(kind)

    @property
    def columns(self) -> set[str]:
        """The columns of the log by which they are matched."""
        return {column for kind in self._all() for column in kind}

    @property
    def count(self) -> int:
        return sum(map(len, self._all().values()))

    @property
    def matched(self) -> int:
        return sum(int(found.sum()) for found in self._found.values())

    def _all(self) -> dict[tuple[str, ...], Array]:
        if not self._names:
            self._names = {kind: np.unique(np.concatenate(parts)) for kind, parts in self._parts.items()}
            self._found = {kind: np.zeros(len(names), dtype=bool) for kind, names in self._names.items()}
        return self._names


def match_log(log: InferenceLog, endpoint: str, names: LabelMatches) -> None:
    """Marks what a row of the whole log is called.

    Raises:
        OnnxserveError: the log is down.
    """
    if names.count:
        for rows in view_tables(log, View(endpoint, shadows=True), [EVENT_TIME, "_row", *names.columns]):
            names.mark(rows)


def write_labels(log: InferenceLog, endpoint: str, day: str, labels: pa.Table) -> None:
    """Puts labels into the log without a server.

    Args:
        day: of their receipt, as 2013-07-01.

    Raises:
        OnnxserveError: the log does not take them.
    """
    content = pa.BufferOutputStream()
    pq.write_table(labels, content, compression="zstd")
    name = f"{LABELS}/endpoint={endpoint}/date={day}/file-{uuid4().hex}.parquet"
    with wrap_log_errors(log.location):
        write_file(log.location, name, content.getvalue())
