"""The rows and event times of a reference that is read at once: the logged training
sample, or a dataset.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.connection import registry_address
from mlflow_deploy_plugin.core.registry.datasets import (
    csv_files,
    dataset_name,
    dataset_path,
    open_parquet,
    reading,
)
from mlflow_deploy_plugin.core.registry.model_files import download, logged_columns
from mlflow_deploy_plugin.core.registry.model_uri import served_version_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.statedir.files import WANTED, FileCache, read_state
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.core.tabular.streams import (
    csv_tables,
    read_parquet,
    require_few_values,
    typed_tables,
)
from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, sample_positions

MAX_ROWS = 1_000_000
SEED = 0
_MODEL_ID = b"model_id"
_KEPT = 50
"""The prefixes of files and folders that are not part of a dataset, such as Spark's
`_SUCCESS`.
"""
_NO_TIMES = (
    "the model's reference has no event times, so it has no windows of its own; "
    "log the model with event_time= (the column or the values with the time of each row)"
)


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """The rows of a reference. `times` is [N] int64, microseconds since 1970, or None;
    messages contain `shown`.
    """

    table: pa.Table
    times: Array | None
    model_id: str
    shown: str
    notes: tuple[str, ...]


def event_times(table: pa.Table, column: str = EVENT_TIME) -> Array | None:
    """Return the event times in microseconds since 1970, [N] int64; times without a
    zone are UTC. Return None if the column does not exist. Raises pa.ArrowException if
    a value is missing or is not a time.
    """
    if column not in table.column_names:
        return None
    values = table.column(column)
    if values.null_count:
        raise pa.ArrowInvalid(f"{values.null_count} rows have no {column}")
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        raise pa.ArrowInvalid(
            f"{column} has type {values.type}, which has no unit; a timestamp is expected",
        )
    try:
        if not (pa.types.is_timestamp(values.type) and values.type.tz):
            with suppress(pa.ArrowInvalid):  # A text with a zone cannot be cast to this type.
                values = values.cast(pa.timestamp("us"), safe=False)
        return microseconds_of(values)
    except pa.ArrowException as error:
        problem = f"{column} has type {values.type}: {str(error).partition(' as a scalar')[0]}"
        raise pa.ArrowInvalid(
            f"{problem}; a timestamp is expected, or a text like 2013-07-01T14:00:00Z",
        ) from None


def load_training_rows(state_dir: Path, model: str, version: str, cache: Path) -> ReferenceRows:
    """Return the reference of a version: from this server's files if the version is
    served, otherwise from MLflow via the cache. Raises NotFound (no version),
    InvalidArtifact (no readable reference) and RegistryUnavailable.
    """
    shown = f"model {model} version {version}"
    served = _served_folder(state_dir, model, version)
    if served:
        return _read_sample(*_reference_of(served, shown), shown)
    resolved = resolve(served_version_uri(model, version))
    identity = f"{registry_address()} {resolved.identity}"
    files = FileCache(cache, ".rows", _KEPT)
    cached = files.path(hashlib.sha256(identity.encode()).hexdigest()[:32])
    if cached.is_file():
        model_id = pq.read_schema(cached).metadata[_MODEL_ID].decode()
        return _read_sample(cached, model_id, shown)
    with tempfile.TemporaryDirectory(prefix="onnxserve-reference-") as temporary:
        path, model_id = _reference_of(download(resolved.source, Path(temporary)), shown)
        rows = _read_sample(path, model_id, shown)
    table = rows.table.replace_schema_metadata({_MODEL_ID: model_id})
    with files.writing(cached) as unfinished:
        pq.write_table(table, unfinished)
    return replace(rows, table=table)


@contextmanager
def model_folder(state_dir: Path, model: str, version: str) -> Iterator[Path]:
    """Yield the folder with the version's files: the server's copy, otherwise a
    temporary copy from the registry. Raises NotFound if the version does not exist, and
    RegistryUnavailable if MLflow does not answer.
    """
    served = _served_folder(state_dir, model, version)
    if served:
        yield served
        return
    with tempfile.TemporaryDirectory(prefix="onnxserve-reference-") as temporary:
        yield download(resolve(served_version_uri(model, version)).source, Path(temporary))


def signature_types(
    state_dir: Path,
    model: str,
    version: str,
) -> dict[str, pa.DataType]:
    """Return the column types in the version's signature; empty if the version is
    unknown.
    """
    try:
        source = (
            _served_folder(state_dir, model, version)
            or resolve(served_version_uri(model, version)).source
        )
        dtypes = logged_columns(str(source)).dtypes
    except (InvalidConfig, NotFound):
        return {}
    return {name: pa.type_for_alias(dtype) for name, dtype in dtypes.items()}


def _served_folder(state_dir: Path, model: str, version: str) -> Path | None:
    """Return the folder of the version if a server on this machine serves it; otherwise
    None.
    """
    served_state = read_state(state_dir / WANTED, Wanted) or Wanted()
    for endpoint in served_state.endpoints.values():
        for variant in endpoint.variants.values():
            if (variant.model, variant.version) == (model, version) and variant.folder.is_dir():
                return variant.folder
    return None


def _reference_of(folder: Path, shown: str) -> tuple[Path, str]:
    """Return the reference file of a saved model, and the id of the logged model."""
    artifact = read_artifact(folder)
    if (path := artifact.reference_file) is None:
        raise InvalidArtifact(
            f"{shown} has no reference; log the model with onnxserve.log_model, "
            "which stores a sample of the data (reference_data=, event_time=)",
        )
    return path, artifact.model_id


def _read_sample(path: Path, model_id: str, shown: str) -> ReferenceRows:
    """Return the rows of a saved model's reference. Raises InvalidArtifact if the file
    cannot be read.
    """
    try:
        table = read_parquet(path)
        times = event_times(table)
    except (OSError, pa.ArrowException) as error:
        raise InvalidArtifact(
            f"the reference {path.name!r} of {shown} cannot be read: {error}",
        ) from None
    notes = () if times is not None else (_NO_TIMES,)
    return ReferenceRows(table, times, model_id, f"the reference of {shown}", notes)


def load_datasets(
    uris: Sequence[str],
    known_types: Callable[[], Mapping[str, pa.DataType]] = dict,
    exclude: Collection[str] = (),
) -> list[ReferenceRows]:
    """Return the rows of datasets: Parquet or CSV files, or folders of such files. Of
    more than `MAX_ROWS` rows, a uniform sample is returned. The event times are in
    `_event_time`, otherwise in the only column of times or dates.

    Args:
        uris: paths, file:// URIs, or URIs that MLflow can download: runs:/…,
            mlflow-artifacts:/…, s3://….
        known_types: returns the known types of CSV columns. Other CSV columns have the
            type of the column in a Parquet dataset among the `uris`, otherwise the type
            that is inferred from the texts of all datasets.
        exclude: columns that are not the event times.

    Raises NotFound if a dataset does not exist, InvalidConfig if it cannot be read or
    has several time columns, and RegistryUnavailable if its storage does not answer.
    """
    datasets = [_read_dataset(uri) for uri in uris]
    texts = [index for index, dataset in enumerate(datasets) if dataset.is_text]
    if texts:
        schemas = chain.from_iterable(data.table.schema for data in datasets if not data.is_text)
        types = {column.name: column.type for column in schemas}
        typed = typed_tables(
            [datasets[index].table for index in texts],
            {**types, **known_types()},
        )
        for index, table in zip(texts, typed, strict=True):
            datasets[index] = replace(datasets[index], table=table)
    return [dataset.reference_rows(exclude) for dataset in datasets]


@dataclass(frozen=True, eq=False)
class _Dataset:
    """A dataset of `rows` rows, of which `table` has at most `MAX_ROWS`. CSV columns
    are texts (`is_text`).
    """

    shown: str
    table: pa.Table
    rows: int
    is_text: bool

    def reference_rows(self, exclude: Collection[str]) -> ReferenceRows:
        """Return the rows, with the column of times renamed to the log's event time.
        Notes report which column was renamed, and that only some rows are read.

        Raises InvalidConfig if the dataset has no rows, or its times cannot be read.
        """
        name_in_messages = self.shown
        table = self.table
        if not len(table):
            raise InvalidConfig(f"{name_in_messages} has no rows")
        with reading(name_in_messages):
            name = ""
            if EVENT_TIME in table.column_names:
                name = EVENT_TIME
            else:
                columns_of_times = [
                    field.name
                    for field in table.schema
                    if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)
                ]
                names = [column for column in columns_of_times if column not in exclude]
                if len(names) > 1:
                    raise InvalidConfig(
                        f"{name_in_messages} has several time columns ({', '.join(names)}): rename "
                        f"one to {EVENT_TIME}, or exclude the others (onnxserve drift run "
                        "--exclude)"
                    )
                if names and not pc.all(pc.is_null(table.column(names[0]))).as_py():
                    name = names[0]
            times = event_times(table, name) if name else None
        notes = []
        if times is not None and name != EVENT_TIME:
            table = table.drop_columns([name]).append_column(
                EVENT_TIME,
                pa.array(times, pa.timestamp("us", tz="UTC")),
            )
            notes.append(
                f"the only column of times in {name_in_messages}, {name}, was taken as the event "
                f"times: to name another one, rename it to {EVENT_TIME}; to use none, exclude "
                f"{name} (onnxserve drift run --exclude)"
            )
        if self.rows > len(table):
            notes.append(
                f"{name_in_messages} has {self.rows:,} rows, of which {len(table):,} are read",
            )
        return ReferenceRows(table, times, "", name_in_messages, tuple(notes))


def _read_dataset(uri: str) -> _Dataset:
    with dataset_path(uri) as path:
        files = csv_files(path)
        if files:
            # One column is enough to count the rows.
            count = sum(
                len(rows)
                for rows in chain.from_iterable(map(partial(csv_tables, most_columns=1), files))
            )
            positions = sample_positions(count, MAX_ROWS, SEED)
            samples = []
            first = 0
            for rows in chain.from_iterable(map(csv_tables, files)):
                drawn = slice(*np.searchsorted(positions, [first, first + len(rows)]))
                samples.append(rows.take(pa.array(positions[drawn] - first)))
                first += len(rows)
            table = pa.concat_tables(samples, promote_options="default")
        else:
            data = open_parquet(path)
            count = data.count_rows()
            require_few_values(
                [*map(attrgetter("metadata"), data.get_fragments())],
                min(MAX_ROWS / max(count, 1), 1),
            )
            if count > MAX_ROWS:
                table = data.take(sample_positions(count, MAX_ROWS, SEED))
            else:
                table = data.to_table()
            for name, columns in Counter(table.column_names).items():
                if columns > 1:
                    raise pa.ArrowInvalid(f"it has two columns named {name!r}")
        return _Dataset(dataset_name(uri), table, count, is_text=bool(files))
