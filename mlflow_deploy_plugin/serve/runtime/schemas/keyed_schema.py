"""Key columns (`capture.keys`): columns of a request that are not model inputs, such as
the id of a customer.

The values of the keys (texts, numbers or booleans, possibly missing) are captured and
passed in `NarrowedFeeds.sent`. An integer keeps all its digits even if another value is
missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    NarrowedFeeds,
    narrowed_feeds,
    sent_arrays,
)
from mlflow_deploy_plugin.serve.runtime.log_columns import key_array
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, columns_of
from mlflow_deploy_plugin.serve.runtime.values import LISTS, short_repr


@dataclass(frozen=True)
class KeyedSchema(Schema):
    """The schema of a model whose requests may also have the columns `keys`. An absent
    column has missing values.
    """

    model: Schema = field(default_factory=lambda: Schema((), (), ()))

    def from_columns(self, data: Mapping[str, Sequence[object] | Array]) -> Feeds:
        model_data, keys = self.split(data)
        return self.attach(self.model.from_columns(model_data), keys)

    def from_frame(self, data: Mapping[str, list[object] | Array]) -> Feeds:
        model_data, keys = self.split(data)
        return self.attach(self.model.from_frame(model_data), keys)

    def from_records(self, records: Sequence[Mapping[str, object]]) -> Feeds:
        model_records = records
        if not self.columns and all(isinstance(record, Mapping) for record in records):
            # The columns other than the keys form the tensor.
            model_records = [self.split(record)[0] for record in records]
        feeds = self.model.from_records(model_records)
        return self.attach(feeds, columns_of(records, self.keys))

    def from_rows(self, names: Sequence[str], rows: Sequence[Sequence[object]]) -> Feeds:
        """Return feeds from rows. For a signature of tensors, the columns other than
        the keys form the tensor.
        """
        positions = {name: position for position, name in enumerate(names) if name in self.keys}
        model_names = names
        model_rows = rows
        is_table = LISTS.issuperset(map(type, rows)) and set(map(len, rows)) == {len(names)}
        if positions and is_table and not self.columns:
            is_model_column = [name not in positions for name in names]
            model_names = list(compress(names, is_model_column))
            model_rows = [list(compress(row, is_model_column)) for row in rows]
        feeds = self.model.from_rows(model_names, model_rows)
        keys = {}
        for name, position in positions.items():
            keys[name] = [row[position] for row in rows]
        return self.attach(feeds, keys)

    def from_array(self, values: object) -> Feeds:
        return self.attach(self.model.from_array(values), {})

    @property
    def tensor_schema(self) -> Schema:
        return self.model.tensor_schema

    def split(self, data: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the columns other than the keys, and the keys."""
        keys = {name: data[name] for name in self.keys if name in data}
        return {name: values for name, values in data.items() if name not in keys}, keys

    def attach(self, feeds: Feeds, keys: Mapping[str, Any]) -> NarrowedFeeds:
        """Return the feeds with the values of the keys.

        Raises SchemaMismatch if a key does not have one value per row, or if a value of
        a key is a list or an object.
        """
        rows = self.count_rows(feeds)
        arrays = {}
        for name in self.keys:
            values = keys.get(name)
            if values is None:
                values = [None] * rows
            elif isinstance(values, np.ndarray):
                values = values.reshape(-1) if values.shape[1:] == (1,) else values
            elif not self.has_rows and not isinstance(values, list | tuple):
                values = [values]  # There is one value for the whole request.
            if not isinstance(values, list | tuple) and np.ndim(values) != 1:
                raise SchemaMismatch(
                    f"key {name!r} is {short_repr(values)}; a list of values is expected",
                    column=name,
                )
            if len(values) != rows:
                raise SchemaMismatch(
                    f"key {name!r} has {len(values)} values; the request has {rows} rows",
                    column=name,
                )
            array = key_array(name, values)
            arrays[name] = array if self.has_rows else array.reshape(())
        return add_keys(feeds, arrays)


def with_keys(schema: Schema, keys: tuple[str, ...]) -> Schema:
    """Return the schema that also reads the columns `keys`, or the schema unchanged if
    there are no keys.
    """
    if not keys:
        return schema
    return KeyedSchema(
        schema.columns,
        schema.tensors,
        schema.inputs,
        schema.has_rows,
        schema.refusals,
        keys,
        schema.is_foreign,
        schema.unread,
        model=schema,
    )


def add_keys(feeds: Feeds, keys: Mapping[str, Array]) -> NarrowedFeeds:
    """Return the feeds together with the arrays of keys, which are captured."""
    return narrowed_feeds(feeds, {**sent_arrays(feeds), **keys})
