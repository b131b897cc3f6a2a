"""The model that a captured request refers to: it binds arrays to the columns of the log, and selects columns.

A masked column holds keyed BLAKE2b hashes (RFC 7693; 128 bits of the value as text, hexadecimal), in the spool and in
the log. Equal values have equal hashes with the same key. Without the key, values cannot be found by trying.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import orjson

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.messages import did_you_mean
from mlflow_deploy_plugin.runtime import Column, Input, Schema, Tensor
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.log_columns import (
    OUTPUT_PREFIX,
    PREDICTION,
    as_key,
    only_answer_columns,
    output_column,
)
from mlflow_deploy_plugin.statedir.files import read_or_make_secret

MASK_KEY = "mask.key"
"""The file in a server's state folder. Another server with a copy of it makes the same hashes."""
STREAM_OUTPUT = "stream"
"""The output that holds all parts of an answer in parts."""
Value = str | int | float | bool | None
_KEY_BYTES, _MAX_KEY_BYTES = 32, 64
_DIGEST_BYTES = 16


class ColumnMask:
    """Hashes values with the key in a file; the file is made if there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keyed: hashlib.blake2b | None = None  # keyed once: a copy costs half the time of a new hash

    def ensure_key(self) -> None:
        """Raise InvalidConfig if there is no key and none can be made."""
        try:
            _read_key(self._path)
        except OSError as error:
            raise InvalidConfig(f"the key of masked columns cannot be read or made: {error.strerror}") from None

    def hash_column(self, values: Array) -> list[str | None]:
        """Return [N] hashes, None for a missing value; [N, …] values have one hash per row.

        Raises OSError if the key cannot be read or made, and InvalidConfig if the file holds no key.
        """
        if values.shape == (1,):  # most requests: the general way takes thrice as long
            return [self._hash(float(str(values[0])) if values.dtype.char == "f" else values.item())]
        # `tolist` turns a float32's 0.1 into another number
        rows = list(values) if values.dtype == np.float32 else values.tolist()
        if values.ndim > 1:
            rows = [orjson.dumps(row, default=str).decode() for row in values.tolist()]
        hashes = {value: self._hash(value) for value in dict.fromkeys(rows)}  # repeated values are hashed once
        return [hashes[value] for value in rows]

    def hash_values(self, values: Mapping[str, Value], names: frozenset[str]) -> dict[str, Value]:
        """Return the values with those under `names` hashed. Raises as `hash_column`."""
        return {**values, **{name: self._hash(values[name]) for name in values if name in names}}

    def _hash(self, value: object) -> str | None:
        text = as_key(value)
        if text is None:
            return None
        if self._keyed is None:
            self._keyed = hashlib.blake2b(key=_read_key(self._path), digest_size=_DIGEST_BYTES)
        digest = self._keyed.copy()
        digest.update(text.encode())
        return str(digest.hexdigest())


def _read_key(path: Path) -> bytes:
    """Return the key that the file holds in hexadecimal; make a new one if there is no file."""
    text = read_or_make_secret(path, secrets.token_hex(_KEY_BYTES).encode())  # all workers need the same key
    try:
        key = bytes.fromhex(text.decode().strip())
    except ValueError:
        key = b""
    if not 16 <= len(key) <= _MAX_KEY_BYTES:
        raise InvalidConfig(
            f"the file {path.name} holds no key: 32 to {2 * _MAX_KEY_BYTES} hexadecimal digits are expected"
        )
    return key


@dataclass(frozen=True, eq=False)
class CapturedModel:
    """Binds the arrays of a captured request to columns, as `runtime.to_log_columns` needs it.

    `eq=False`: one object for each loaded version and choice of columns, compared by identity.

    Attributes:
        schema: with the columns that are kept, and the names of the arrays that hold them as they were sent.
        outputs: the names of the graph's outputs; None if they are not known.
        mask: columns of the log that are masked; no kept array has their values.
        cuts: for each input that is not kept whole: the positions of the kept columns, [columns] intp.
        left_out: outputs that are not kept; PREDICTION stands for all outputs of a model whose outputs are not known.
        masked: for each input with masked columns: (column, position), None if the whole input is the column.
        keys: columns that are captured and not fed; each is an input of the schema.
    """

    model: str
    version: str
    schema: Schema
    prediction: tuple[str, ...]
    outputs: tuple[str, ...] | None = None
    mask: tuple[str, ...] = ()
    cuts: Mapping[str, Array] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    masked: Mapping[str, tuple[tuple[str, int | None], ...]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", self.schema.capture_schema)

    @property
    def has_all_outputs(self) -> bool:
        """True if no output is left out or masked; a stream is captured only then."""
        return not self.left_out and PREDICTION not in self.mask

    def leaves_out(self, output: str) -> bool:
        return output in self.left_out or (self.outputs is None and PREDICTION in self.left_out)

    def masked_outputs(self, name: str, array: Array) -> Sequence[tuple[str, None]]:
        """Return the column of this output if it is masked, in the form of `masked`."""
        column = output_column(self.prediction, name, array)
        is_masked = column in self.mask or (self.outputs is None and PREDICTION in self.mask)
        return [(column, None)] if is_masked else []

    def with_keys(self, keys: tuple[str, ...]) -> Self:
        """Return the model with the columns `keys`. Raises InvalidConfig if a key is an input of the model."""
        schema = self.schema
        taken = {*schema.names, *(entry.name for entry in schema.inputs)}
        if both := next((name for name in keys if name in taken), ""):
            raise InvalidConfig(
                f"capture.keys: {both!r} is an input of {self.model} {self.version}, and is captured without it; "
                "a key is a column that the model does not take"
            )
        inputs = (*schema.inputs, *(Input(name, "str", (-1,)) for name in keys))
        further = tuple(Column(name, "string", required=False) for name in keys) if schema.columns else ()
        return replace(self, schema=replace(schema, columns=(*schema.columns, *further), inputs=inputs), keys=keys)


@lru_cache(maxsize=1024)
def exclude_columns(
    model: CapturedModel, drop: tuple[str, ...], mask: tuple[str, ...], keys: tuple[str, ...] = ()
) -> CapturedModel:
    """Return the model with `keys`, without the columns `drop`, and with `mask` masked; cached per arguments.

    Raises InvalidConfig if a name is not a column of the log, or a key is an input of the model.
    """
    model = model.with_keys(keys) if keys else model
    if not drop and not mask:
        return model
    _check_names("drop", drop, model)
    _check_names("mask", mask, model)
    excluded = {*drop, *mask}
    left_out = {name.removeprefix(OUTPUT_PREFIX) for name in excluded if name.startswith(OUTPUT_PREFIX)}
    only_answer = only_answer_columns(model.prediction)
    if PREDICTION in excluded:
        left_out.update({PREDICTION, *model.prediction})
    if not only_answer.isdisjoint(mask):
        mask = tuple(sorted({*mask} | only_answer))
    inputs: list[Input] = []
    cuts: dict[str, Array] = {}
    masked: dict[str, tuple[tuple[str, int | None], ...]] = {}
    for entry in model.schema.inputs:
        names = entry.columns or (entry.name,)
        places = [place for place, name in enumerate(names) if name not in excluded]
        if len(places) < len(names):
            cuts[entry.name] = np.array(places, dtype=np.intp)
            masked[entry.name] = tuple(
                (name, place if entry.columns else None) for place, name in enumerate(names) if name in mask
            )
            entry = replace(entry, columns=tuple(names[place] for place in places))
        if places:
            inputs.append(entry)
    schema = Schema(
        tuple(column for column in model.schema.columns if column.name not in excluded),
        tuple(tensor for tensor in model.schema.tensors if tensor.name not in excluded),
        tuple(inputs),
        model.schema.has_rows,
    )
    return replace(model, schema=schema, mask=mask, cuts=cuts, left_out=frozenset(left_out), masked=masked)


def _check_names(option: str, names: Sequence[str], model: CapturedModel) -> None:
    inputs = list(model.schema.names if model.schema.columns else (entry.name for entry in model.schema.inputs))
    prediction = [PREDICTION] if len(model.prediction) == 1 or model.outputs is None else []
    known = [*inputs, *prediction, *(OUTPUT_PREFIX + name for name in model.outputs or ())]
    for name in names:
        is_output = name == PREDICTION or name.startswith(OUTPUT_PREFIX)
        # what a model without a signature takes or gives is only known with each request
        if name in known or (model.outputs is None if is_output else not inputs):
            continue
        hint = did_you_mean(name, known, f"there is {', '.join(known[:20])}")
        raise InvalidConfig(f"capture.{option}: {model.model} {model.version} has no column {name!r}{hint}")


def encode_model(model: CapturedModel) -> bytes:
    """Return the model as JSON, without what the schema derives from its fields, which orjson would write as well."""
    schema = {name: getattr(model.schema, name) for name in ("columns", "tensors", "inputs")}
    head = {"model": model.model, "version": model.version, "prediction": model.prediction, "keys": model.keys}
    return orjson.dumps({**head, "schema": schema})


def decode_model(encoded: memoryview) -> CapturedModel:
    """Reverse `encode_model`. Raises ValueError, KeyError or TypeError if the bytes are malformed."""
    document = orjson.loads(encoded)
    fields = document["schema"]
    columns = [Column(**entry) for entry in fields["columns"]]
    tensors = [Tensor(e["name"], e["dtype"], tuple(e["shape"])) for e in fields["tensors"]]
    inputs = [
        Input(e["name"], e["dtype"], tuple(e["shape"]), tuple(e["columns"]), e["missing"]) for e in fields["inputs"]
    ]
    schema = Schema(tuple(columns), tuple(tensors), tuple(inputs))
    keys = tuple(document.get("keys", ()))  # a segment of an older version has none
    return CapturedModel(document["model"], document["version"], schema, tuple(document["prediction"]), keys=keys)
