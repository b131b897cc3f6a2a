"""A sample of a window's rows that is the same each time.

The hash of a row's identity makes the sample: of more rows than the bound, those with the smallest hashes are kept.
Doubles have equal hashes, so they are dropped whatever the order of the files is (bottom-k sampling: Cohen and Kaplan,
PODC 2007).
"""

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log.identity import row_hashes
from mlflow_deploy_plugin.inference_log.lists import Array
from mlflow_deploy_plugin.inference_log.schemas import stack


class Sample:
    """At most `bound` distinct rows: those with the smallest hashes."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._tables: list[pa.Table] = []
        self._hashes: list[Array] = []
        self._held = 0
        self.is_full = False

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._hashes.append(row_hashes(table))
        self._held += len(table)
        if self._held > 2 * self._bound:
            self._compact()

    def rows(self) -> int:
        """The number of distinct rows that were added; beyond the bound an estimate, good to 1/sqrt(bound)."""
        self._compact()
        if not self.is_full:
            return self._held
        return round((self._bound - 1) / (float(self._hashes[0][-1]) / 2.0**64))

    def table(self) -> pa.Table:
        self._compact()
        return self._tables[0]

    def _compact(self) -> None:
        table = stack(self._tables)
        hashes, first = np.unique(np.concatenate(self._hashes), return_index=True)
        if len(hashes) > self._bound:
            self.is_full = True
            hashes, first = hashes[: self._bound], first[: self._bound]
        self._tables, self._hashes, self._held = [table.take(pa.array(first))], [hashes], len(hashes)
