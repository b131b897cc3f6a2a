"""The model of a captured request: it binds arrays to the columns of the log and
selects the captured columns.

A masked column contains the first 128 bits of the HMAC-SHA-256 (FIPS 198-1) of the
value as text, in hexadecimal, both in the spool and in the log. With the same key,
equal values have equal hashes. Without the key, values cannot be found by guessing.
"""

import hmac
import secrets
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import orjson

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION, is_prediction
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import did_you_mean
from mlflow_deploy_plugin.core.statedir.files import read_or_make_secret
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.log_columns import (
    as_key,
    only_answer_columns,
    output_column,
)
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema

MASK_KEY = "mask.key"
"""The file of the key, in a server's state folder. A server with a copy of this file
creates the same hashes.
"""
STREAM_OUTPUT = "stream"
"""The output that contains all parts of a streamed response."""
Value = str | int | float | bool | None
NamedArrays = Mapping[str, Array]
_KEY_BYTES = 32
_MAX_KEY_BYTES = 64
_DIGEST_DIGITS = 32


class ColumnMask:
    """Hashes values with the key in a file. The file is created if it does not
    exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Copying this keyed hash takes a third of the time of creating one.
        self._keyed: hmac.HMAC | None = None

    def ensure_key(self) -> None:
        """Raise InvalidConfig if there is no key and a key cannot be created."""
        try:
            _read_key(self._path)
        except OSError as error:
            raise InvalidConfig(
                f"the key of masked columns cannot be read or created: {error.strerror}",
            ) from None

    def hash_column(self, values: Array) -> list[str | None]:
        """Return the hashes of a column's values: one per row, None for a missing
        value. A row may have several values.

        Raises OSError if the key cannot be read or created, and InvalidConfig if the
        file does not contain a valid key.
        """
        if values.shape == (1,):  # The usual case, in a third of the time of the general code.
            value = float(str(values[0])) if values.dtype.char == "f" else values.item()
            return [self._hash(value)]
        # `tolist` would convert a float32's 0.1 to a different number.
        rows = list(values) if values.dtype == np.float32 else values.tolist()
        if values.ndim > 1:
            rows = [orjson.dumps(row, default=str).decode() for row in values.tolist()]
        # Repeated values are hashed once.
        hashes = {value: self._hash(value) for value in dict.fromkeys(rows)}
        return [hashes[value] for value in rows]

    def hash_values(
        self,
        values: Mapping[str, Value],
        names: frozenset[str],
    ) -> dict[str, Value]:
        """Return the values, with hashes instead of the values of `names`.

        Raises OSError if the key cannot be read or created, and InvalidConfig if the
        file does not contain a valid key.
        """
        hashes = {name: self._hash(values[name]) for name in values if name in names}
        return {**values, **hashes}

    def _hash(self, value: object) -> str | None:
        """Return the hash of a value, or None for a missing value."""
        text = as_key(value)
        if text is None:
            return None
        if self._keyed is None:
            self._keyed = hmac.new(_read_key(self._path), digestmod="sha256")
        digest = self._keyed.copy()
        digest.update(text.encode())
        return digest.hexdigest()[:_DIGEST_DIGITS]


def _read_key(path: Path) -> bytes:
    """Return the key that the file contains in hexadecimal. If there is no file, create
    the file with a new key.
    """
    # All workers get the same key.
    text = read_or_make_secret(path, secrets.token_hex(_KEY_BYTES).encode())
    try:
        key = bytes.fromhex(text.decode().strip())
    except ValueError:
        key = b""
    if not 16 <= len(key) <= _MAX_KEY_BYTES:
        raise InvalidConfig(
            f"the file {path.name} does not contain a key of 32 to {2 * _MAX_KEY_BYTES} "
            "hexadecimal digits",
        )
    return key


ColumnPosition = tuple[str, int | None]
"""A column of an input, and its position; None if the column is the whole input."""


@dataclass(frozen=True, eq=False)
class CapturedModel:
    """A model that binds the arrays of a captured request to columns for
    `serve.runtime.log_columns.to_log_columns`.

    There is one object per loaded version and selection of columns; objects are
    compared by identity (`eq=False`).

    Attributes:
        schema: the kept columns, and the names of the arrays that contain these columns
            as they were sent.
        outputs: the names of the graph's outputs; None if they are unknown.
        mask: the log columns that are masked; the kept arrays do not contain the masked
            values.
        cuts: for each input with excluded columns, the positions of the kept columns,
            [columns] intp.
        left_out: the outputs that are not kept; PREDICTION means all outputs of a model
            with unknown outputs.
        masked: (column, position) by input with masked columns; the position is None if
            the column is the whole input.
        is_guarded: True if requests without `GUARD` are within the training rows.
        keys: columns that are captured and not passed to the model; each key is an
            input of the schema.
        steps: the digest of the steps around the model; empty without steps.
    """

    model: str
    version: str
    schema: Schema
    prediction: tuple[str, ...]
    outputs: tuple[str, ...] | None = None
    mask: tuple[str, ...] = ()
    cuts: Mapping[str, Array] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    masked: Mapping[str, tuple[ColumnPosition, ...]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    is_guarded: bool = False
    steps: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", self.schema.capture_schema)

    @property
    def has_all_outputs(self) -> bool:
        """True if no output is omitted or masked. Only then is a stream captured."""
        return not self.left_out and PREDICTION not in self.mask

    def leaves_out(self, output: str) -> bool:
        """Return True if this output is not kept."""
        return output in self.left_out or (self.outputs is None and PREDICTION in self.left_out)

    def masked_outputs(self, name: str, array: Array) -> Sequence[tuple[str, None]]:
        """Return the column of this output in the form of `masked` if the column is
        masked, otherwise an empty list.
        """
        column = output_column(self.prediction, name, array)
        is_masked = column in self.mask or (self.outputs is None and PREDICTION in self.mask)
        return [(column, None)] if is_masked else []

    def with_keys(self, keys: tuple[str, ...]) -> Self:
        """Return the model with the columns `keys`. Raises InvalidConfig if a key is an
        input of the model.
        """
        schema = self.schema
        taken = {*schema.names, *(entry.name for entry in schema.inputs)}
        clashing = [name for name in keys if name in taken]
        if clashing:
            raise InvalidConfig(
                f"capture.keys: {clashing[0]!r} is an input of {self.model} {self.version}, which "
                "is captured anyway; a key must not be an input of the model",
            )
        inputs = (
            *schema.inputs,
            *(Input(name, "str", (-1,)) for name in keys),
        )
        columns = schema.columns
        if columns:
            columns += tuple(Column(name, "string", required=False) for name in keys)
        return replace(
            self,
            schema=replace(schema, columns=columns, inputs=inputs),
            keys=keys,
        )


@lru_cache(maxsize=128)
def exclude_columns(
    model: CapturedModel,
    drop: tuple[str, ...],
    mask: tuple[str, ...],
    keys: tuple[str, ...] = (),
) -> CapturedModel:
    """Return the model with `keys`, without the columns `drop`, and with `mask` masked.
    The result is cached.

    Raises InvalidConfig if a name is not a column of the log, or if a key is an input
    of the model.
    """
    model = model.with_keys(keys) if keys else model
    if not drop and not mask:
        return model
    _check_names("drop", drop, model)
    _check_names("mask", mask, model)
    excluded = {*drop, *mask}
    only_answer = only_answer_columns(model.prediction)
    if not only_answer.isdisjoint(mask):
        mask = tuple(sorted({*mask} | only_answer))
    cuts = {}
    masked: dict[str, tuple[ColumnPosition, ...]] = {}
    for entry in model.schema.inputs:
        names = _column_names(entry)
        if not excluded.isdisjoint(names):
            kept = [index for index, name in enumerate(names) if name not in excluded]
            cuts[entry.name] = np.array(kept, dtype=np.intp)
            if entry.columns:
                masked[entry.name] = tuple(
                    (name, index) for index, name in enumerate(entry.columns) if name in mask
                )
            else:
                masked[entry.name] = ((entry.name, None),) if entry.name in mask else ()
    left_out = {
        name.removeprefix(OUTPUT_PREFIX) for name in excluded if name.startswith(OUTPUT_PREFIX)
    }
    if PREDICTION in excluded:
        left_out.update({PREDICTION, *model.prediction})
    return replace(
        model,
        schema=_without_columns(model.schema, excluded),
        mask=mask,
        cuts=cuts,
        left_out=frozenset(left_out),
        masked=masked,
    )


def _column_names(entry: Input) -> tuple[str, ...]:
    return entry.columns or (entry.name,)


def _without_columns(schema: Schema, excluded: Set[str]) -> Schema:
    """Return the schema without these columns, and without inputs that have no other
    columns.
    """
    inputs = []
    for entry in schema.inputs:
        if set(_column_names(entry)) - excluded:
            columns = tuple(name for name in entry.columns if name not in excluded)
            inputs.append(replace(entry, columns=columns))
    return Schema(
        tuple(column for column in schema.columns if column.name not in excluded),
        tuple(tensor for tensor in schema.tensors if tensor.name not in excluded),
        tuple(inputs),
        schema.has_rows,
    )


def _check_names(option: str, names: Sequence[str], model: CapturedModel) -> None:
    """Raise InvalidConfig if a name in `capture.{option}` is not a column that the log
    of this model has.
    """
    if model.schema.columns:
        inputs = list(model.schema.names)
    else:
        inputs = [entry.name for entry in model.schema.inputs]
    columns = [*inputs]
    if len(model.prediction) == 1 or model.outputs is None:
        columns.append(PREDICTION)
    columns += [OUTPUT_PREFIX + name for name in model.outputs or ()]
    for name in names:
        # Accept any name if the model has no signature: the first request shows the
        # inputs and outputs.
        if is_prediction(name):
            is_undescribed = model.outputs is None
        else:
            is_undescribed = not inputs
        if is_undescribed or name in columns:
            continue
        hint = did_you_mean(name, columns, f"the columns are {', '.join(columns[:20])}")
        raise InvalidConfig(
            f"capture.{option}: {model.model} {model.version} has no column {name!r}{hint}",
        )


def encode_model(model: CapturedModel) -> bytes:
    """Return the model as JSON, without the derived fields of the schema, which orjson
    would also write.
    """
    schema = {name: getattr(model.schema, name) for name in ("columns", "tensors", "inputs")}
    head = {
        "model": model.model,
        "version": model.version,
        "prediction": model.prediction,
        "keys": model.keys,
        "guarded": model.is_guarded,
        "steps": model.steps,
    }
    return orjson.dumps({**head, "schema": schema})


def decode_model(encoded: memoryview) -> CapturedModel:
    """Return the model that `encode_model` encoded. Raises ValueError, KeyError or
    TypeError for malformed bytes.
    """
    document = orjson.loads(encoded)
    fields = document["schema"]
    columns = [Column(**entry) for entry in fields["columns"]]
    tensors = [
        Tensor(
            entry["name"],
            entry["dtype"],
            tuple(entry["shape"]),
        )
        for entry in fields["tensors"]
    ]
    inputs = [
        Input(
            name=entry["name"],
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            columns=tuple(entry["columns"]),
            missing=entry["missing"],
        )
        for entry in fields["inputs"]
    ]
    schema = Schema(tuple(columns), tuple(tensors), tuple(inputs))
    keys = tuple(document.get("keys", ()))  # Segments of older versions have no keys.
    return CapturedModel(
        document["model"],
        document["version"],
        schema,
        tuple(document["prediction"]),
        keys=keys,
        is_guarded=document.get("guarded", False),
        steps=document.get("steps", ""),
    )
