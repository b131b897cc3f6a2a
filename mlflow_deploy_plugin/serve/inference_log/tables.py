"""Tables of the log: unify schemas, summarise lists as numbers, convert captured
answers to the outputs of their version, and identify rows by (`_segment`, `_offset`,
`_row`). Hashes of these identities reveal duplicates and select a reproducible sample.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION, is_prediction
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.log_columns import as_text, only_answer_columns

_COMPONENTS = 8
_PROJECTIONS = 8
TIME = pa.timestamp("us", tz="UTC")
"""The type of times in the log."""
IDENTITY = ("_segment", "_offset", "_row")


def unify_schemas(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the union of the schemas' columns. Two numeric types become the wider
    type; booleans with numbers become 1 and 0. Integers with floats become float64,
    which is exact up to 2**53. Any other pair of types becomes text.
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            before = types.get(field.name, kind)
            if before != kind:
                pair = _boolean_as(before, kind), _boolean_as(kind, before)
                try:
                    unified = pa.unify_schemas(
                        [pa.schema([("c", one)]) for one in pair],
                        promote_options="permissive",
                    )
                    kind = unified.field("c").type
                except (pa.ArrowInvalid, pa.ArrowTypeError):
                    kind = pa.large_string() if pa.large_string() in pair else pa.string()
            types[field.name] = kind
    return pa.schema(types.items())


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the same rows with the columns and types of `schema`. A column that the
    table lacks is null. For text, values are written as in the log, and nested values
    as JSON.
    """
    types = pa.types
    names = set(table.column_names)
    columns = []
    for field in schema:
        kind = field.type
        if field.name not in names:
            columns.append(pa.nulls(len(table), kind))
            continue
        column = table.column(field.name)
        if column.type == kind:
            columns.append(column)
            continue
        is_text = types.is_string(column.type) or types.is_large_string(column.type)
        if not (types.is_string(kind) or types.is_large_string(kind)):
            column = pc.cast(column, kind, safe=False)
        elif is_text or types.is_dictionary(column.type):
            column = pc.cast(column, kind)
        else:
            values = column.to_pylist()
            if types.is_nested(column.type):
                texts = [
                    None if value is None else json.dumps(value, default=str) for value in values
                ]
            else:
                texts = [as_text(value) for value in values]
            column = pa.chunked_array([pa.array(texts, kind)])
        columns.append(column)
    return pa.table(columns, schema=schema)


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    if all(table.schema == tables[0].schema for table in tables):
        return pa.concat_tables(tables)
    schema = unify_schemas(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def summarise_lists(
    table: pa.Table,
    requested: Collection[str] = (),
) -> pa.Table:
    """Replace each column of numeric lists with a few numeric columns. Other lists are
    unchanged.

    A short vector (a list in Parquet) becomes its components: `probabilities.0`,
    `probabilities.1`. A long vector or a tensor becomes the mean and standard deviation
    of each row, `image.mean` and `image.std`, and projections on eight random
    directions, `image.projection.0` (Johnson and Lindenstrauss; with signs as
    directions: Achlioptas, PODS 2001). Columns in `requested` are always created, so
    that the result does not depend on the rows: `x.mean` requests mean, std and
    projections; `x.0` and `x.1` request at least these components.
    """
    for name in table.column_names:
        column = table.column(name)
        if not is_list(column.type):
            continue
        components = 0
        while components < _COMPONENTS and f"{name}.{components}" in requested:
            components += 1
        numbers = _flatten(column)
        if numbers is None:
            continue
        longest = max(int(numbers.lengths.max(initial=0)), components)
        is_tensor = numbers.depth > 1 or f"{name}.mean" in requested
        if longest <= _COMPONENTS and not is_tensor:
            parts = numbers.components(longest)
        else:
            parts = numbers.statistics(longest)
        table = table.remove_column(table.column_names.index(name))
        for suffix, values in parts.items():
            table = table.append_column(f"{name}.{suffix}", pa.array(values))
    return table


def _boolean_as(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return `other` if `kind` is boolean and `other` is numeric, also within lists.
    Otherwise return `kind`.
    """
    if pa.types.is_list(kind) and pa.types.is_list(other):
        return pa.list_(_boolean_as(kind.value_type, other.value_type))
    is_number = pa.types.is_integer(other) or pa.types.is_floating(other)
    if pa.types.is_boolean(kind) and is_number:
        return other
    return kind


def nested_lists(values: pa.Array, shape: Sequence[int]) -> pa.Array:
    """Return the values of an array of the shape [N, a, b] as N nested lists."""
    for axis in range(len(shape) - 1, 0, -1):
        length = math.prod(shape[:axis])
        offsets = np.arange(length + 1, dtype=np.int32) * shape[axis]
        values = pa.ListArray.from_arrays(offsets, values)
    return values


def is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind),
    )


@dataclass(eq=False)
class _FlatNumbers:
    """The M numbers of N lists.

    Attributes:
        values: [M] float64, NaN for null.
        rows / positions: [M]; the list of each number, and its position in the list.
        lengths: [N].
        depth: the depth of the nested lists.
    """

    values: Array
    rows: Array
    positions: Array
    lengths: Array
    depth: int

    def components(self, count: int) -> dict[str, Array]:
        """Return the first `count` numbers of each list, by position, with NaN beyond
        the list's end. The lists have at most `count` numbers.
        """
        table = np.full((len(self.lengths), count), np.nan)
        table[self.rows, self.positions] = self.values
        return {str(position): table[:, position] for position in range(count)}

    def statistics(self, longest: int) -> dict[str, Array]:
        """Return the mean, the standard deviation and the projections of each list.

        This changes the numbers, because a copy would need half as much memory again.
        """
        is_finite = np.isfinite(self.values)
        self.rows = self.rows[is_finite]
        self.positions = self.positions[is_finite]
        self.values = self.values[is_finite]

        def row_sums(weights: Array | None = None) -> Array:
            return np.bincount(self.rows, weights, minlength=len(self.lengths))

        with np.errstate(invalid="ignore"):
            lengths = row_sums()
            mean = row_sums(self.values) / lengths
            self.values -= mean[self.rows]
            summary = {
                "mean": mean,
                "std": np.sqrt(row_sums(self.values**2) / lengths),
            }
            # The directions are the same for every call.
            direction_bits = splitmix64(np.arange(longest, dtype=np.uint64))
            for number in range(_PROJECTIONS):
                signs = np.where(direction_bits >> np.uint64(number) & np.uint64(1), 1.0, -1.0)
                projected = row_sums(self.values * signs[self.positions])
                summary[f"projection.{number}"] = projected / np.sqrt(lengths)
        return summary


def _flatten(column: pa.ChunkedArray) -> _FlatNumbers | None:
    """Return the numbers of the lists, or None if the values are not numeric."""
    rows = np.arange(len(column))
    flat = column.combine_chunks()
    depth = 0
    while is_list(flat.type):
        rows = rows[np.asarray(pc.list_parent_indices(flat))]
        flat = pc.list_flatten(flat)
        depth += 1
    # If all lists are empty, the value type is null.
    is_number = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    if not any(test(flat.type) for test in is_number):
        return None
    values = np.asarray(flat.cast(pa.float64(), safe=False).fill_null(float("nan")))
    lengths = np.bincount(rows, minlength=len(column))
    positions = np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]
    return _FlatNumbers(values, rows, positions, lengths, depth)


def count_versions(table: pa.Table) -> dict[tuple[str, str], int]:
    """Return the number of rows by version, the most frequent version first."""
    counted = (
        table.select(["_model", "_version"])
        .group_by(["_model", "_version"])
        .aggregate([([], "count_all")])
    )
    return most_first(
        {(row["_model"], row["_version"]): row["count_all"] for row in counted.to_pylist()},
    )


def most_first(counts: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    return dict(
        sorted(
            counts.items(),
            key=lambda entry: (-entry[1], entry[0]),
        )
    )


def with_both_names(columns: Iterable[str], artifact: Artifact | None) -> set[str]:
    """Return the columns; a single answer is added under both of its names,
    `prediction` and `output.NAME`.
    """
    names = {*columns}
    if artifact is not None:
        both_names = only_answer_columns(artifact.prediction)
        if names & both_names:
            names |= both_names
    return names


def describe_answers(
    artifact: Artifact | None,
    rows: pa.Table,
    masked: Collection[str],
) -> Artifact:
    """Return the version's description of its outputs, or a guess from the `rows` if
    the version no longer exists. Masked predictions are treated as numbers.
    """
    if artifact is not None and artifact.outputs:
        return artifact
    outputs = []
    for name in rows.column_names:
        if is_prediction(name):
            is_number = name in masked or pa.types.is_floating(rows.column(name).type)
            is_label = name == PREDICTION and not is_number
            output = name.removeprefix(OUTPUT_PREFIX)
            outputs.append(Output(output, "", (), role="label" if is_label else "values"))
    return Artifact(
        folder=Path(),
        onnx_file=Path(),
        flavor="onnxserve",
        mlflow_version="",
        model_id="",
        run_id="",
        outputs=tuple(outputs),
        prediction=(PREDICTION,),
    )


def captured_outputs(
    artifact: Artifact,
    rows: pa.Table,
    masked: Collection[str],
) -> dict[str, Array]:
    """Return the arrays of the outputs that the log has for every row, by name. Masked
    labels are equal if their hashes are equal. Masked numbers are excluded, because
    they cannot be compared.
    """
    hidden = with_both_names(masked, artifact)
    arrays = {}
    for output in artifact.outputs:
        if output.role != "label" and OUTPUT_PREFIX + output.name in hidden:
            continue
        names = [OUTPUT_PREFIX + output.name]
        if artifact.prediction == (output.name,):
            names.append(PREDICTION)
        for name in names:
            if name in rows.column_names and not rows.column(name).null_count:
                array = as_array(rows.column(name).combine_chunks())
                if array is not None:
                    arrays[output.name] = array
    return arrays


def as_array(column: pa.Array) -> Array | None:
    """Return the column as an array, [N], or [N, …] for lists of equal length; None if
    the lengths differ.
    """
    shape = [len(column)]
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) > 1:
            return None
        # An empty column has no length, and a column of nulls has the length None.
        length = lengths[0] if lengths else 0
        shape.append(length or 0)
        column = pc.list_flatten(column)
    values: Array = column.to_numpy(zero_copy_only=False)
    return values.reshape(shape)


class Deduplicator:
    """A set of hashes with 8 bytes per hash, to detect duplicates. Of several passes
    over the same rows, each accepts other hashes.
    """

    def __init__(self, pass_number: int = 0, pass_count: int = 1) -> None:
        self._pass_number = pass_number
        self._pass_count = np.uint64(pass_count)
        self._sorted: list[Array] = []  # Each array is at least twice as long as the next.

    def add(self, hashes: Array) -> Array:
        """Add the hashes. Return True, [N] bool, for each accepted hash that did not
        occur before, in this call or an earlier call.
        """
        ascending, positions = np.unique(hashes, return_index=True)
        is_new = ascending % self._pass_count == self._pass_number
        for block in self._sorted:
            nearest = np.minimum(np.searchsorted(block, ascending), len(block) - 1)
            is_new &= block[nearest] != ascending
        if is_new.any():
            # Merge the new hashes with the shorter arrays.
            merged = ascending[is_new]
            while self._sorted and len(self._sorted[-1]) < 2 * len(merged):
                merged = np.concatenate([self._sorted.pop(), merged])
                merged.sort(kind="stable")  # A stable sort merges the two sorted runs fast.
            self._sorted.append(merged)
        is_first = np.zeros(len(hashes), dtype=bool)
        is_first[positions[is_new]] = True
        return is_first


class Sample:
    """A sample of at most `bound` distinct rows: the rows with the smallest hashes.
    Duplicates have equal hashes, so duplicates are dropped for any order of the files
    (bottom-k sampling: Cohen and Kaplan, PODC 2007).
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._tables: list[pa.Table] = []
        self._hashes: list[Array] = []
        self._held = 0
        self.is_full = False

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._hashes.append(hash_rows(table))
        self._held += len(table)
        if self._held > 2 * self._bound:
            self._compact()

    def rows(self) -> int:
        """Return the number of distinct rows so far. Above `bound` it is an estimate
        with an error of 1/sqrt(bound).
        """
        self._compact()
        if not self.is_full:
            return self._held
        return round((self._bound - 1) / (float(self._hashes[0][-1]) / 2.0**64))

    def table(self) -> pa.Table:
        self._compact()
        return self._tables[0]

    def _compact(self) -> None:
        table = concat_tables(self._tables)
        hashes, first = np.unique(np.concatenate(self._hashes), return_index=True)
        if len(hashes) > self._bound:
            self.is_full = True
            hashes = hashes[: self._bound]
            first = first[: self._bound]
        self._tables = [table.take(pa.array(first))]
        self._hashes = [hashes]
        self._held = len(hashes)


def hash_rows(table: pa.Table) -> Array:
    """Return uniform hashes of (segment, offset, row), [N] uint64. Collisions are
    practically impossible. A label may have no row.
    """
    hashes = hash_texts(table.column("_segment"))
    for name in ("_offset", "_row"):
        numbers = table.column(name).fill_null(-1).to_numpy()
        hashes = combine_hashes(hashes, numbers.astype(np.uint64))
    return hashes


def hash_texts(column: pa.ChunkedArray) -> Array:
    """Return hashes of texts, [N] uint64, which are the same in every process. Null has
    a separate hash.
    """
    texts = pc.fill_null(column.combine_chunks(), "\0").dictionary_encode()
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts.dictionary.to_pylist()]
    distinct_hashes = np.frombuffer(b"".join(digests), dtype=np.uint64)
    hashes: Array = distinct_hashes[np.asarray(texts.indices)]
    return hashes


def distinct(ascending: Array) -> Array:
    """Return each value of the ascending array once. NumPy 2.4's `unique` takes 65
    times as long for hashes.
    """
    # The slice is for an empty array.
    is_first = np.append(
        True,
        ascending[1:] > ascending[:-1],
    )[: len(ascending)]
    return np.compress(is_first, ascending)


def combine_hashes(hashes: Array, values: Array) -> Array:
    """Return uniform hashes that depend on `hashes` and `values`, [N] uint64."""
    return splitmix64(hashes ^ splitmix64(values))


def splitmix64(values: Array) -> Array:
    """Return hashes, [N] uint64, whose bits depend on all bits of the value (Steele,
    Lea, Flood: OOPSLA 2014).
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: Array = values ^ (values >> np.uint64(31))
    return scattered
