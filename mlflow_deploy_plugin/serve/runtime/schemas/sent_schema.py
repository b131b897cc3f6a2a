"""The schema of requests to a version with a step `before`: it accepts any columns, and
returns them as they were sent.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.schemas.schema import (
    Schema,
    check_filled,
    check_records,
    columns_of,
)
from mlflow_deploy_plugin.serve.runtime.values import LISTS, short_repr

_SEQUENCES = LISTS | {np.ndarray}


class _AnyName(tuple[str, ...]):
    """The keys of a schema that accepts columns of any name."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return True


class MissingColumn(SchemaMismatch, KeyError):
    """A step reads a column that the caller has not sent."""


class SentColumns(dict[str, Any]):
    """The columns that the caller sent, by name."""

    def __missing__(self, name: object) -> Any:
        raise MissingColumn(f"column {short_repr(name)} is missing", column=str(name))


class SentSchema(Schema):
    """The columns of the model give types to CSV, and an order to rows without names.

    The methods return each column as a list or an array, as it was sent.
    """

    _fast = None  # The fast decoder reads only the model's columns.

    def from_columns(self, data: Mapping[str, Any]) -> dict[str, Any]:
        kinds = set(map(type, data.values()))
        if data and kinds.isdisjoint(_SEQUENCES):
            return {name: [value] for name, value in data.items()}  # One record.
        if self.has_rows:
            lengths: set[int] = set()
            with suppress(TypeError):  # An array without dimensions has no length.
                lengths.update(map(len, data.values()))
            if not kinds <= _SEQUENCES or len(lengths) != 1 or 0 in lengths:
                raise SchemaMismatch(
                    "the columns must be lists or arrays with one entry per row, and at least one "
                    "row"
                )
        return dict(data)

    from_frame = from_columns
    _from_tensors = from_columns

    def from_records(self, records: Sequence[Mapping[str, object]]) -> dict[str, Any]:
        check_records(records)
        if len(records) == 1 and records[0]:  # The usual case, in a fifth of the time.
            return {name: [value] for name, value in records[0].items()}
        names = dict.fromkeys(chain.from_iterable(records))
        sent = sum(map(len, records))
        check_filled(len(records) * len(names) - sent, sent)
        return self.from_columns(columns_of(records, names))

    def from_rows(self, names: Sequence[str], rows: Sequence[Sequence[object]]) -> dict[str, Any]:
        if LISTS.issuperset(map(type, rows)) and set(map(len, rows)) == {len(names)}:
            columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            if columns and len(columns) == len(names):
                return columns
        return super().from_rows(names, rows)  # It raises the error.

    def missing_columns(self, sent: object) -> None:
        """Return None, because `before` may add any column."""


def sent_schema(schema: Schema) -> SentSchema:
    """Return the schema of the requests whose columns become inputs of `schema`."""
    return SentSchema(
        schema.columns, schema.tensors, schema.inputs, schema.has_rows, keys=_AnyName()
    )
