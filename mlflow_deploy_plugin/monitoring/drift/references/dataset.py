"""A named dataset as reference: Parquet or CSV, in a folder, behind a URI of MLflow's, or in its artifact store."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.inference_log import Array
from mlflow_deploy_plugin.monitoring.drift.references.rows import ReferenceRows, event_times
from mlflow_deploy_plugin.registry import redact_credentials, registry_errors
from mlflow_deploy_plugin.runtime import EVENT_TIME
from mlflow_deploy_plugin.tabular import read_table

MAX_ROWS = 1_000_000
_SEED = 0


def load_dataset(uri: str) -> ReferenceRows:
    """Return the rows of a Parquet or CSV file, or of a folder of such files; of more than `MAX_ROWS` an even sample.

    When each row happened says the column `_event_time`, or the only column of times or dates that there is.

    Args:
        uri: a path, file://, or what MLflow can fetch: runs:/…, mlflow-artifacts:/…, s3://….

    Raises:
        NotFound: there is nothing.
        InvalidConfig: it cannot be read, or has more than one column of times.
        RegistryUnavailable: what keeps it does not answer.
    """
    parsed = urlparse(uri)
    if parsed.scheme in ("", "file"):
        return _read(Path(unquote(parsed.path)).expanduser(), uri)
    with tempfile.TemporaryDirectory(prefix="onnxserve-dataset-") as temporary:
        return _read(_fetch(uri, Path(temporary)), uri)


def dataset_columns(uri: str) -> tuple[str, ...]:
    """Return the names of a dataset's columns. Takes and raises as `load_dataset`; a local file's rows are not read."""
    parsed = urlparse(uri)
    if parsed.scheme in ("", "file"):
        return _names(Path(unquote(parsed.path)).expanduser(), uri)
    with tempfile.TemporaryDirectory(prefix="onnxserve-dataset-") as temporary:
        return _names(_fetch(uri, Path(temporary)), uri)


def _names(path: Path, uri: str) -> tuple[str, ...]:
    with _reading(uri):
        if _is_csv(path):
            with pa_csv.open_csv(path) as reader:
                return tuple(reader.schema.names)
        return tuple(_dataset(path).schema.names)


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    shown = f"the dataset {redact_credentials(uri)}"
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{shown} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise InvalidConfig(f"{shown} cannot be read: {' '.join(str(error).split())}") from None


def _fetch(uri: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts  # a second to import; a file on this disk does without

    shown = redact_credentials(uri)
    try:
        with registry_errors(f"the dataset {shown}"):
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except OnnxserveError:
        raise
    except Exception as error:  # noqa: BLE001 - each kind of artifact store (boto3, GCS, Azure, …) has its own classes
        reason = redact_credentials(" ".join(str(error).split()))
        raise RegistryUnavailable(f"the dataset {shown} cannot be fetched: {reason}") from None


def _read(path: Path, uri: str) -> ReferenceRows:
    shown = f"the dataset {redact_credentials(uri)}"
    with _reading(uri):
        table, count = _table(path)
        name = _time_column(table, shown)
        times = event_times(table, name) if name else None
    if not len(table):
        raise InvalidConfig(f"{shown} has no rows")
    if len(set(table.column_names)) < table.num_columns:
        raise InvalidConfig(f"{shown} has two columns of one name")
    notes = [f"{shown} has {count:,} rows, of which {len(table):,} are compared with"] if count > len(table) else []
    if times is None:
        notes.append(f"{shown} has no event times (a column {EVENT_TIME}), so there are no windows to compare with")
    elif name != EVENT_TIME:
        table = table.drop_columns([name]).append_column(EVENT_TIME, pa.array(times, pa.timestamp("us", tz="UTC")))
    return ReferenceRows(table, times, "", shown, tuple(notes))


def _table(path: Path) -> tuple[pa.Table, int]:
    """Return the rows, and how many there were before the sample was taken."""
    if _is_csv(path):
        table = read_table(path)
        chosen = _chosen(len(table))
        return (table if chosen is None else table.take(chosen)), len(table)
    data = _dataset(path)
    count = data.count_rows()
    chosen = _chosen(count)
    return (data.to_table() if chosen is None else data.take(chosen)), count


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".gz", ".bz2") and path.is_file()


def _dataset(path: Path) -> pa_dataset.Dataset:
    if not path.exists():
        raise FileNotFoundError
    has_csv = path.is_dir() and next(path.rglob("*.csv"), None) is not None
    return pa_dataset.dataset(path, format="csv" if has_csv else "parquet")


def _chosen(count: int) -> Array | None:
    if count <= MAX_ROWS:
        return None
    return np.sort(np.random.default_rng(_SEED).choice(count, MAX_ROWS, replace=False))


def _time_column(table: pa.Table, shown: str) -> str:
    """Return the name of the column of event times; empty if there is none."""
    if EVENT_TIME in table.column_names:
        return EVENT_TIME
    names = [field.name for field in table.schema if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)]
    if len(names) > 1:
        raise InvalidConfig(f"{shown} has several columns of times ({', '.join(names)}): name the one {EVENT_TIME}")
    return names[0] if names and not pc.all(pc.is_null(table.column(names[0]))).as_py() else ""
