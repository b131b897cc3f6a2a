"""Datasets that users name by a path or a URI: Parquet or CSV files, or folders of such
files.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pa_dataset

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.connection import redact_credentials
from mlflow_deploy_plugin.core.registry.model_files import fetch
from mlflow_deploy_plugin.core.settings import absolute_path, local_path
from mlflow_deploy_plugin.core.tabular.row_files import SPARK_TIMES
from mlflow_deploy_plugin.core.tabular.streams import open_csv

_HIDDEN = (".", "_")


def dataset_columns(uri: str) -> tuple[str, ...]:
    """Return a dataset's column names without reading rows of a local file. Raises the
    errors of `dataset_path`.
    """
    with dataset_path(uri) as path:
        if files := csv_files(path):
            names = chain.from_iterable(open_csv(file).schema.names for file in files)
            return tuple(dict.fromkeys(names))
        return tuple(open_parquet(path).schema.names)


def dataset_name(uri: str) -> str:
    """Return the name of a dataset for messages."""
    return f"the dataset {redact_credentials(uri)}"


@contextmanager
def dataset_path(uri: str) -> Iterator[Path]:
    """Yield the path of the dataset or of a downloaded copy.

    Raises NotFound, InvalidConfig if the dataset cannot be read, and
    RegistryUnavailable.
    """
    shown = dataset_name(uri)
    local = local_path(uri)
    with ExitStack() as stack:
        if local is not None:
            path = absolute_path(local)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxserve-dataset-"))
            path = fetch(uri, Path(folder), shown)
        stack.enter_context(reading(shown))
        if not path.exists():
            raise FileNotFoundError
        yield path


@contextmanager
def reading(shown: str) -> Iterator[None]:
    """Convert the errors of files and of Arrow to NotFound and InvalidConfig about the
    dataset `shown`.
    """
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{shown} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise InvalidConfig(f"{shown} cannot be read: {one_line(error)}") from None


def csv_files(path: Path) -> list[Path]:
    """Return the CSV files of a dataset, sorted by name; empty for Parquet."""
    if path.is_file():
        if path.suffix.lower() in (".csv", ".gz", ".bz2"):
            return [path]
        return []
    files = []
    for file in sorted(path.rglob("*.csv")):
        if not any(part.startswith(_HIDDEN) for part in file.relative_to(path).parts):
            files.append(file)
    return files


def open_parquet(path: Path) -> pa_dataset.Dataset:
    """Open a Parquet file, or a folder of Parquet files, without reading rows."""
    # A buffered stream reads a file of one large row group without holding its
    # compressed bytes.
    options = {**SPARK_TIMES, "use_buffered_stream": True, "pre_buffer": False}
    return pa_dataset.dataset(path, format=pa_dataset.ParquetFileFormat(**options))
