"""The rows that a version is judged on: a named dataset with the truth, or the sample that lies beside the model."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.gate.policy import EvaluationPolicy
from mlflow_deploy_plugin.registry import no_request_timeout, registry_client, registry_errors
from mlflow_deploy_plugin.runtime import COLUMN_TYPES, OUTPUT_PREFIX, PREDICTION, Array, Artifact, cast_columns

NamedArrays = dict[str, Array]
"""Arrays of [N] (tensors: [N, …]) by column: text as objects, a missing value as NaN or None."""


_MOST_BYTES = 2_000_000_000
_MOST_VALUES = 200_000_000
"""What is read of a file lies in memory before rows are chosen from it; a Parquet file tells its size beforehand."""


def count_rows(rows: NamedArrays) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def take_rows(rows: NamedArrays, positions: Array | slice) -> NamedArrays:
    return {name: array[positions] for name, array in rows.items()}


def sample_positions(total: int, most: int, seed: int) -> Array:
    """At most `most` positions of `total`, without doubles, in order."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))


def read_rows(path: Path, shown: str) -> NamedArrays:
    """The rows of a CSV or Parquet file.

    Raises:
        InvalidConfig: it does not exist, is neither, is too large, or cannot be read; the message calls it `shown`.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidConfig(f"the dataset {shown} has more than {_MOST_BYTES:,} bytes; name a sample of it")
        match path.suffix.lower():
            case ".parquet":
                if (values := _values_in(path)) > _MOST_VALUES:
                    raise InvalidConfig(f"the dataset {shown} holds {values:,} values; name a sample of it")
                table = pa.parquet.read_table(path)
            case ".csv":
                # as pandas reads them, and with it MLflow: an empty text is a missing one
                table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))
            case other:
                raise InvalidConfig(f"the dataset {shown} ends in {other!r}; .csv and .parquet are read")
    except FileNotFoundError:
        raise InvalidConfig(f"the dataset {shown} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise InvalidConfig(f"the dataset {shown} cannot be read: {' '.join(str(error).split())}") from None
    if not table.num_rows:
        raise InvalidConfig(f"the dataset {shown} has no rows")
    try:
        return from_table(table)
    except ValueError:  # numpy's: lists of several lengths
        raise InvalidConfig(f"the dataset {shown} has a column whose lists are not of one length") from None


def _values_in(parquet: Path) -> int:
    """Those of lists counted one by one: a thousand million of the same take a few bytes in a file."""
    holds = pa.parquet.read_metadata(parquet)
    groups = [holds.row_group(group) for group in range(holds.num_row_groups)]
    return sum(group.column(column).num_values for group in groups for column in range(group.num_columns))


def from_table(table: pa.Table) -> NamedArrays:
    return {name: _values(table.column(name)) for name in table.column_names}


def _values(column: pa.ChunkedArray) -> Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return np.array(column.to_pylist())
    return np.asarray(column.to_numpy())


REFERENCE = "reference"
_DATASET = "dataset:/"
_ARTIFACT = re.compile(r"(runs|models):/[^/]")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to judge by.

    Attributes:
        name: what a person calls it.
        rows: the model's inputs, and whatever stands beside them.
        truth: [N]; None: the rows are without labels.
    """

    name: str
    rows: NamedArrays
    truth: Array | None = None


def require_mlflow_artifact(dataset: str) -> None:
    """Raises InvalidConfig: it is a file of this machine, or elsewhere, and none that MLflow gives to whoever asks."""
    if dataset in ("", REFERENCE) or _ARTIFACT.match(dataset):
        return
    raise InvalidConfig(
        f"the policy's dataset {dataset} may not be read here, where only artifacts of MLflow are "
        "(runs:/RUN_ID/PATH, models:/NAME/VERSION/PATH, or `reference`): `onnxserve gate MODEL VERSION` reads any file"
    )


def load_dataset(policy: EvaluationPolicy, artifact: Artifact, seed: int) -> Dataset:
    """The labelled rows that the policy names, at most `max_rows` of them.

    Raises:
        InvalidConfig: there is no such file, it cannot be read, or it has no such target.
        NotFound / RegistryUnavailable: the run or the dataset is not there, or MLflow does not say so.
    """
    rows = _rows(policy.dataset, artifact)
    if policy.target not in rows:
        columns = ", ".join(rows)
        raise InvalidConfig(f"the dataset {policy.dataset} has no column {policy.target!r}; it has {columns[:300]}")
    known = np.flatnonzero([_is_known(value) for value in rows[policy.target]])
    if not len(known):
        raise InvalidConfig(f"the dataset {policy.dataset} has no row whose {policy.target!r} is known")
    rows = take_rows(rows, known[sample_positions(len(known), policy.max_rows, seed)])
    truth = rows.pop(policy.target)
    if truth.dtype.kind == "O" and not isinstance(truth[0], str):
        truth = np.array(truth.tolist())
    return Dataset(policy.dataset, cast_to_signature(artifact, _without_the_logs_own(artifact, rows)), truth)


def cast_to_signature(artifact: Artifact, rows: NamedArrays) -> NamedArrays:
    """The same rows, numbers in the types that the model's signature says; a file and the log may have them in others.

    Two versions may say it differently, so that each is given its own.
    """
    dtypes = {column.name: COLUMN_TYPES[column.type] for column in artifact.columns if column.type in COLUMN_TYPES}
    for tensor in artifact.tensors:  # the only one may have no name, and then is whatever the rows have
        dtypes |= {tensor.name: tensor.dtype} if tensor.name else dict.fromkeys(rows, tensor.dtype)
    return cast_columns(dtypes, rows)


def reference_rows(artifact: Artifact, most: int, seed: int) -> Dataset | None:
    """Unlabelled rows for what needs none: the reference beside the model, else None."""
    if artifact.reference is None:
        return None
    rows = _reference(artifact)
    return Dataset("the model's reference", take_rows(rows, sample_positions(count_rows(rows), most, seed)))


def _is_known(value: Any) -> bool:
    """Neither missing nor NaN; of several values, none of them."""
    return value is not None and bool(np.all(value == value))


def _rows(dataset: str, artifact: Artifact) -> NamedArrays:
    if dataset == REFERENCE:
        if artifact.reference is None:
            raise InvalidConfig("the model has no reference; log it with mlflow_deploy_plugin.log_model")
        return _reference(artifact)
    if dataset.startswith(_DATASET):
        return _logged(dataset)
    if ":" in dataset and not dataset.startswith("file:"):
        with tempfile.TemporaryDirectory(prefix="onnxserve-dataset-") as folder:
            return read_rows(_downloaded(dataset, folder), dataset)
    return read_rows(Path(dataset.removeprefix("file://")).expanduser(), dataset)


def _reference(artifact: Artifact) -> NamedArrays:
    """The inputs of the reference in the signature's types; its predictions are the model's own, and no truth."""
    assert artifact.reference is not None
    path = artifact.folder / artifact.reference
    if not path.resolve().is_relative_to(artifact.folder.resolve()):
        raise InvalidConfig(f"the model names the reference {artifact.reference!r}, which lies outside of it")
    rows = read_rows(path, "of the model's reference")
    return cast_to_signature(artifact, _without_the_logs_own(artifact, rows))


def _without_the_logs_own(artifact: Artifact, rows: NamedArrays) -> NamedArrays:
    """The inputs of logged rows: a model of one tensor, which may have no name, would take any column for it."""
    names = {field.name for field in artifact.columns or artifact.tensors}
    own = ("_", OUTPUT_PREFIX)
    return {
        name: values
        for name, values in rows.items()
        if name in names or not (name == PREDICTION or name.startswith(own))
    }


def _downloaded(uri: str, folder: str) -> Path:
    from mlflow.artifacts import download_artifacts  # a second, and only for what is not on this disk

    try:
        with registry_errors(f"the dataset {uri}"), no_request_timeout():
            return Path(download_artifacts(artifact_uri=uri, dst_path=folder))
    except OnnxserveError:
        raise
    except Exception as error:  # noqa: BLE001 - each kind of artifact store has its own classes
        raise InvalidConfig(f"the dataset {uri} cannot be fetched: {' '.join(str(error).split())[:300]}") from None


def _logged(dataset: str) -> NamedArrays:
    """The file behind a dataset that was logged to a run by `mlflow.log_input`.

    Raises:
        NotFound: the run has no such dataset.
        InvalidConfig: MLflow knows where the dataset came from, but that is no file that can be read.
    """
    from mlflow.data import get_source  # as above

    run_id, _, name = dataset.removeprefix(_DATASET).partition("/")
    with registry_errors(f"run {run_id}"):
        inputs = registry_client().get_run(run_id).inputs.dataset_inputs
    found = [entry.dataset for entry in inputs if name in ("", entry.dataset.name)]
    if not found:
        names = ", ".join(entry.dataset.name for entry in inputs) or "none"
        raise NotFound(f"run {run_id} has no dataset {name!r}; it has {names}")
    try:
        path = Path(get_source(found[-1]).load())
    except (NotImplementedError, AttributeError, TypeError):
        raise InvalidConfig(
            f"the dataset {dataset} was logged without a source that can be read; log it with source=FILE, "
            "or name the file itself"
        ) from None
    return read_rows(path, dataset)
