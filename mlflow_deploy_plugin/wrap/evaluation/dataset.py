"""The rows on which a version is judged: a dataset with labels, or the reference in the
model's folder.
"""

import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES, INPUT_EXAMPLE
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.model_files import fetch
from mlflow_deploy_plugin.core.settings import absolute_path, local_path
from mlflow_deploy_plugin.core.spec.evaluation_names import REFERENCE
from mlflow_deploy_plugin.core.tabular.streams import MAX_BYTES, read_table
from mlflow_deploy_plugin.serve.protocols import mlflow as mlflow_protocol
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, row_count, sample_positions
from mlflow_deploy_plugin.serve.runtime.log_columns import cast_columns
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype

NamedArrays = dict[str, Array]
"""Arrays of [N] (tensors: [N, …]) by column. Texts are objects, and a missing value is
NaN or None.
"""

_DATASET = "dataset:/"
_RANDOM_ROWS = 64


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows with a known label: the model's inputs, any other columns, and the labels,
    [N].
    """

    rows: NamedArrays
    truth: Array


def take_rows(rows: NamedArrays, positions: Array | slice) -> NamedArrays:
    return {name: array[positions] for name, array in rows.items()}


def load_dataset(
    dataset: str, target: str, artifact: Artifact, seed: int, max_rows: int
) -> LabelledRows:
    """Return at most `max_rows` labelled rows of a dataset.

    Args:
        dataset: the name of the dataset, as in a gate policy.
        target: the label column.
        artifact: the artifact of the model, whose signature determines the types.
        seed: the seed that samples the rows.
        max_rows: the maximum number of rows.

    Raises:
        InvalidConfig: the file or the target is missing.
        NotFound: the run is missing.
        RegistryUnavailable: MLflow does not answer.
    """
    return labelled_rows(read_dataset(dataset, artifact), dataset, target, artifact, seed, max_rows)


def labelled_rows(
    rows: NamedArrays, source: str, target: str, artifact: Artifact, seed: int, max_rows: int
) -> LabelledRows:
    """Return at most `max_rows` rows with a known target. Raises InvalidConfig without
    such rows, or if the target is an input.

    Args:
        rows: the rows, [N, …] by column or tensor.
        source: the name of the dataset; empty for rows in memory.
        target: the label column.
        artifact: the artifact of the model, whose signature determines the types.
        seed: the seed that samples the rows.
        max_rows: the maximum number of rows.
    """
    data_name = f"the dataset {source}" if source else "the data"
    if target not in rows:
        raise InvalidConfig(
            f"{data_name} has no column {target!r}; it has {join_names(rows, target)}"
        )
    if target in {column.name for column in artifact.columns}:
        raise InvalidConfig(f"target {target!r} is an input of the model; name the label column")
    # Only a missing value, NaN, or an array with a NaN differs from itself.
    is_known = [value is not None and bool(np.all(value == value)) for value in rows[target]]
    positions = np.flatnonzero(is_known)
    if not len(positions):
        raise InvalidConfig(f"{data_name} has no row with a known {target!r}")
    rows = take_rows(rows, positions[sample_positions(len(positions), max_rows, seed)])
    truth = rows.pop(target)
    if truth.dtype.kind == "O" and not isinstance(truth[0], str):
        truth = np.array(truth.tolist())
    return LabelledRows(cast_to_signature(artifact, _without_log_columns(artifact, rows)), truth)


def load_rows(dataset: str, artifact: Artifact, most: int, seed: int) -> NamedArrays:
    """Return at most `most` rows of a dataset, labelled or not, sampled by the seed.
    Raises InvalidConfig if the file is missing, NotFound if the run is missing, and
    RegistryUnavailable if MLflow does not answer.
    """
    rows = _without_log_columns(artifact, read_dataset(dataset, artifact))
    positions = sample_positions(row_count(rows), most, seed)
    return cast_to_signature(artifact, take_rows(rows, positions))


def reference_rows(artifact: Artifact, most: int, seed: int) -> NamedArrays | None:
    """Return at most `most` rows of the model's reference, sampled by the seed, or None
    without a reference.
    """
    if (path := artifact.reference_file) is None:
        return None
    rows = _read_reference(artifact, path)
    return take_rows(rows, sample_positions(row_count(rows), most, seed))


def known_rows(artifact: Artifact, schema: Schema, most: int) -> NamedArrays:
    """Return rows in the types of the signature: the version's input example, otherwise
    at most `most` rows of its reference or of random numbers. Raises SchemaMismatch if
    the example does not match the model.
    """
    example = artifact.folder / INPUT_EXAMPLE
    feeds: Mapping[str, Array] | None = None
    if example.is_file():
        feeds = mlflow_protocol.decode(JSON, example.read_bytes(), schema)
    elif (reference := reference_rows(artifact, most, seed=0)) is not None:
        feeds = schema.from_columns(reference)
    if feeds is not None:
        # A graph may stack booleans and integers with floats in one input.
        return cast_to_signature(artifact, schema.to_columns(feeds))
    # Normal numbers for floats, zeros and ones for other numbers, the same text
    # everywhere.
    random = np.random.default_rng(0)
    shapes = {tensor.name: tensor.shape for tensor in schema.tensors}
    rows = {}
    for name, dtype in schema.dtypes.items():
        shape = shapes.get(name, (-1,))
        sizes = [max(size, 1) for size in shape]
        if shape and shape[0] == -1:
            sizes[0] = min(_RANDOM_ROWS, most)
        kind = numpy_dtype(dtype).kind
        values = random.normal(size=sizes) if kind == "f" else random.integers(0, 2, sizes)
        rows[name] = np.full(sizes, "a", dtype=object) if kind == "O" else values.astype(dtype)
    return rows


def cast_to_signature(artifact: Artifact, rows: NamedArrays) -> NamedArrays:
    """Return the rows with numbers in the types of the model's signature, because
    files, the log and other versions may have other types. Numeric columns for a single
    tensor are stacked into the tensor.
    """
    columns = list(rows.values())
    if len(artifact.tensors) == 1 and len(columns) > 1:
        tensor = artifact.tensors[0]
        is_matrix = len(tensor.shape) == 2 and tensor.shape[1] in (-1, len(columns))
        are_numbers = all(values.ndim == 1 and values.dtype.kind in "biuf" for values in columns)
        if is_matrix and are_numbers and tensor.name not in rows:
            # The columns are in the order of the file.
            rows = {tensor.name: np.stack(columns, axis=1)}
    dtypes = _column_dtypes(artifact)
    for tensor in artifact.tensors:  # The type of an unnamed tensor applies to all columns.
        names = [tensor.name] if tensor.name else rows
        dtypes |= dict.fromkeys(names, tensor.dtype)
    return cast_columns(dtypes, rows)


def _column_dtypes(artifact: Artifact) -> dict[str, str]:
    return {
        column.name: COLUMN_TYPES[column.type]
        for column in artifact.columns
        if column.type in COLUMN_TYPES
    }


def own_columns(artifact: Artifact, rows: NamedArrays) -> NamedArrays:
    """Return the columns or tensors that the model uses, in the types of its signature;
    return all if the signature has no names. Disturbances stay within the bounds of the
    types. Raises InvalidConfig if several arrays are given for one unnamed tensor.
    """
    names = {field.name for field in artifact.columns or artifact.tensors}
    columns = {name: values for name, values in rows.items() if name in names or not any(names)}
    columns = cast_to_signature(artifact, columns)
    if names == {""} and len(columns) > 1:
        raise InvalidConfig(
            f"the model has one unnamed tensor, and the data contains {join_names(columns)}: name "
            "the target, and remove all other arrays"
        )
    return columns


def read_rows(path: Path, data_name: str, artifact: Artifact) -> NamedArrays:
    """Return the rows of a CSV or Parquet file, or the arrays of a .npz file. Raises
    InvalidConfig if the file cannot be read.

    Args:
        path: the path of the file.
        data_name: the name of the file in messages.
        artifact: the artifact of the model, whose signature determines the types of CSV
            columns.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidConfig(
                f"the dataset {data_name} has more than {MAX_BYTES:,} bytes; use a sample"
            )
        ending = path.suffix.lower()
        if ending not in (".csv", ".parquet", ".npz"):
            raise InvalidConfig(
                f"the dataset {data_name} ends in {ending!r}; supported are .csv, .parquet and .npz"
            )
        if ending == ".npz":
            try:
                with zipfile.ZipFile(path) as file:
                    if sum(entry.file_size for entry in file.infolist()) > MAX_BYTES:
                        raise InvalidConfig(
                            f"the dataset {data_name} contains more than {MAX_BYTES:,} bytes; use "
                            "a sample"
                        )
                with np.load(path, allow_pickle=False) as arrays:
                    rows = dict(arrays)
                for name, array in rows.items():
                    if array.dtype.kind == "U":
                        rows[name] = array.astype(object)
            # Arrays of objects, which need pickle, raise a ValueError.
            except (zipfile.BadZipFile, ValueError, EOFError) as error:
                raise InvalidConfig(
                    f"the dataset {data_name} cannot be read: {one_line(error)}"
                ) from None
            return _check_lengths(rows, f"the dataset {data_name}")
        types = {name: pa.type_for_alias(dtype) for name, dtype in _column_dtypes(artifact).items()}
        table = read_table(path, types)
    except FileNotFoundError:
        raise InvalidConfig(f"the dataset {data_name} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise InvalidConfig(f"the dataset {data_name} cannot be read: {one_line(error)}") from None
    if not table.num_rows:
        raise InvalidConfig(f"the dataset {data_name} has no rows")
    duplicates = [name for name, count in Counter(table.column_names).items() if count > 1]
    if duplicates:
        raise InvalidConfig(f"the dataset {data_name} has two columns named {duplicates[0]!r}")
    return _table_rows(table, f"the dataset {data_name}")


def read_data(data: object, artifact: Artifact) -> tuple[NamedArrays, str]:
    """Return all rows of a dataset, a DataFrame or a mapping of arrays, and the name of
    the dataset, empty for rows in memory.

    Raises InvalidConfig if the data cannot be read, NotFound if the run is missing, and
    RegistryUnavailable if MLflow does not answer.
    """
    if isinstance(data, str | Path) and str(data):
        return read_dataset(str(data), artifact), str(data)
    return frame_rows(data), ""


def frame_rows(data: object) -> NamedArrays:
    """Return the rows of a DataFrame or of a mapping of arrays [N, …]. Raises
    InvalidConfig for other or empty data.
    """
    if isinstance(data, Mapping):
        arrays = {str(name): np.asarray(values) for name, values in data.items()}
        return _check_lengths(arrays, "the data")
    try:
        table = pa.Table.from_pandas(data, preserve_index=False)
    except (AttributeError, TypeError, ValueError, pa.ArrowException) as error:
        raise InvalidConfig(
            f"data: a file, a DataFrame or a mapping of arrays is expected ({error})"
        ) from None
    return _check_lengths(_table_rows(table, "the data"), "the data")


def _table_rows(table: pa.Table, data_name: str) -> NamedArrays:
    """Return the columns of a table, [N], or [N, …] for lists. Raises InvalidConfig for
    lists of different lengths; the message calls the data `data_name`.
    """
    rows: NamedArrays = {}
    try:
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
            is_list = is_list or pa.types.is_fixed_size_list(column.type)
            rows[name] = np.array(column.to_pylist()) if is_list else np.asarray(column.to_numpy())
    except ValueError:  # numpy raises ValueError for lists of different lengths.
        raise InvalidConfig(f"{data_name} has a column with lists of different lengths") from None
    return rows


def _check_lengths(rows: NamedArrays, data_name: str) -> NamedArrays:
    """Return the rows. Raises InvalidConfig for arrays of different lengths, empty
    arrays and scalars; the message calls the data `data_name`.
    """
    lengths = {array.shape[:1] for array in rows.values()}  # The length of a scalar is ().
    if len(lengths) != 1 or lengths & {(), (0,)}:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in rows.items()) or "none"
        raise InvalidConfig(
            f"{data_name} needs non-empty arrays of equal length; its arrays are {shapes[:300]}"
        )
    return rows


def read_dataset(dataset: str, artifact: Artifact) -> NamedArrays:
    """Return all rows of a dataset, named as in `onnxserve gate` (docs/gate.md).

    Raises InvalidConfig if the file cannot be read or there is no reference, NotFound
    if the run is missing, and RegistryUnavailable if MLflow does not answer.
    """
    if dataset == REFERENCE:
        if (path := artifact.reference_file) is None:
            raise InvalidConfig(
                "the model has no reference; log the model with onnxserve.log_model"
            )
        return _read_reference(artifact, path)
    if dataset.startswith(_DATASET):
        from mlflow.data import get_source  # The import takes a second.
        from mlflow.data.filesystem_dataset_source import FileSystemDatasetSource
        from mlflow.data.http_dataset_source import HTTPDatasetSource

        run_id, _, name = dataset.removeprefix(_DATASET).partition("/")
        with registry_errors(f"run {run_id}"):
            inputs = registry_client().get_run(run_id).inputs.dataset_inputs
        datasets = [entry.dataset for entry in inputs if name in ("", entry.dataset.name)]
        if not datasets:
            names = ", ".join(entry.dataset.name for entry in inputs) or "none"
            raise NotFound(f"run {run_id} has no dataset {name!r}; it has {names}")
        # Only files and URLs are read; all other sources run code or return no file.
        sources = map(get_source, datasets)
        readable = [
            source
            for source in sources
            if isinstance(source, FileSystemDatasetSource | HTTPDatasetSource)
        ]
        if not readable:
            raise InvalidConfig(
                f"the dataset {dataset} was logged without a readable source; log it with "
                "source=FILE, or specify the file instead"
            )
        return read_rows(Path(readable[-1].load()), dataset, artifact)
    path = local_path(dataset)
    if path is not None:
        return read_rows(absolute_path(path), dataset, artifact)
    with tempfile.TemporaryDirectory(prefix="onnxserve-dataset-") as folder:
        return read_rows(fetch(dataset, Path(folder), f"the dataset {dataset}"), dataset, artifact)


def _read_reference(artifact: Artifact, path: Path) -> NamedArrays:
    """Return the inputs of the reference in the signature's types, without its
    predictions, which are not labels.
    """
    rows = read_rows(path, "of the model's reference", artifact)
    return cast_to_signature(artifact, _without_log_columns(artifact, rows))


def _without_log_columns(artifact: Artifact, rows: NamedArrays) -> NamedArrays:
    """Drop the inference log's own columns, because a model with a single unnamed
    tensor would use them as input.
    """
    names = {field.name for field in artifact.columns or artifact.tensors}
    prefixes = ("_", OUTPUT_PREFIX)
    return {
        name: values
        for name, values in rows.items()
        if name in names or not (name == PREDICTION or name.startswith(prefixes))
    }
