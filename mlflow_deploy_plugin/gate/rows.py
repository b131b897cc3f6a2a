"""Rows: labelled or unlabelled inputs as named arrays, from whatever MLflow or a disk holds them in."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.runtime.schema import Array

Rows = dict[str, Array]
"""Arrays of [N] (tensors: [N, …]) by column: text as objects, a missing value as NaN or None."""


_MOST_BYTES = 2_000_000_000
_MOST_VALUES = 200_000_000
"""What is read of a file lies in memory before rows are chosen from it; a Parquet file tells its size beforehand."""


def count(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def take(rows: Rows, positions: Array | slice) -> Rows:
    return {name: array[positions] for name, array in rows.items()}


def chosen(total: int, most: int, seed: int) -> Array:
    """At most `most` positions of `total`, without doubles, in order."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))


def read_rows(path: Path, shown: str) -> Rows:
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


def from_table(table: pa.Table) -> Rows:
    return {name: _values(table.column(name)) for name in table.column_names}


def _values(column: pa.ChunkedArray) -> Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return np.array(column.to_pylist())
    return np.asarray(column.to_numpy())
