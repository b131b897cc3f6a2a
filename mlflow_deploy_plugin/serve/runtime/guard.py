"""The guard of an endpoint, which finds the rows of a request that are outside of the
training rows.

`log_model` saves the ranges of the training rows (`_Rows.ranges` in
`wrap/flavor/wrap.py`). Each column is judged separately.
"""

import json
from collections.abc import Mapping
from math import inf
from typing import final

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidArtifact, OutOfRange
from mlflow_deploy_plugin.core.mlmodel import MALFORMED
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, as_table, sent_arrays
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.values import short_repr

RANGES_FILE = "ranges.json"
"""The file with `columns` (by name, the minimum and maximum, or all texts) and
`complete` (the columns that had no missing values). A column that is not in `columns`
is not judged.
"""
Outside = Mapping[str, Array]
"""True for the rows that are outside, [N] bool, by column; empty if no row is outside.
"""
_Numbers = tuple[str, tuple[str, ...], Array, Array, Array]
"""The name of an array of numbers, its columns, and for each column the minimum, the
maximum, and True if a missing number is outside.
"""
_Texts = tuple[str, list[tuple[int, str, frozenset[object]]]]
"""The name of an array of texts, and for each judged column its position, its name and
the texts that are inside.
"""


@final
class Guard:
    """The ranges of the training rows of a version.

    If `refuses` is True, `check` raises OutOfRange. The constructor raises
    InvalidArtifact if the file of the ranges is malformed.
    """

    def __init__(self, artifact: Artifact, schema: Schema, refuses: bool) -> None:
        self._schema = schema
        self._refuses = refuses
        self._numbers: list[_Numbers] = []
        self._texts: list[_Texts] = []
        try:
            ranges = json.loads((artifact.folder / RANGES_FILE).read_bytes())
            self._columns = ranges["columns"]
            complete = ranges["complete"]
            for entry in schema.sent_inputs:
                names = entry.columns
                if entry.dtype == "str":
                    judged = []
                    for position, name in enumerate(names):
                        if name in self._columns:
                            missing = () if name in complete else (entry.missing, None)
                            known = frozenset([*self._columns[name], *missing])
                            judged.append((position, name, known))
                    self._texts.append((entry.name, judged))
                    continue
                # A float is compared in its own type: 0.1 in 32 bits is above 0.1.
                dtype = np.result_type(entry.dtype, np.float16)
                bounds = [self._columns.get(name, (-inf, inf)) for name in names]
                lows, highs = np.array(bounds, dtype).T.copy()
                is_complete = np.array([name in complete for name in names])
                self._numbers.append((entry.name, names, lows, highs, is_complete))
        except (*MALFORMED, OverflowError) as error:
            raise InvalidArtifact(f"its file {RANGES_FILE} is malformed: {error}") from None

    def check(self, feeds: Feeds) -> Outside:
        """Return the rows that are outside. Raises OutOfRange for the first value that
        is outside if the endpoint refuses it.
        """
        outside: dict[str, Array] = {}
        arrays = sent_arrays(feeds)
        for array_name, names, lows, highs, is_complete in self._numbers:
            array = arrays.get(array_name)
            # Two comparisons decide the usual case, in which no number is missing.
            if array is None or (
                np.count_nonzero(array >= lows) == array.size == np.count_nonzero(array <= highs)
            ):
                continue
            marks = (array < lows) | (array > highs) | (np.isnan(array) & is_complete)
            if np.count_nonzero(marks):
                table = as_table(marks)
                for position in np.flatnonzero(table.any(axis=0)).tolist():
                    outside[names[position]] = table[:, position]
        for array_name, judged in self._texts:
            if array_name not in arrays:
                continue
            columns = as_table(arrays[array_name]).T.tolist()
            for position, name, known in judged:
                if not known.issuperset(columns[position]):
                    outside[name] = np.array([text not in known for text in columns[position]])
        if outside and self._refuses:
            name = next(iter(outside))
            row = int(outside[name].argmax())
            value = short_repr(self._schema.to_columns(feeds)[name].tolist()[row])
            known_values = short_repr(self._columns[name])
            raise OutOfRange(
                f"column {name!r}, row {row}: {value} is outside of the training rows: "
                f"{known_values}",
                column=name,
            )
        return outside
