"""Datasets as references: files and folders, with and without event times."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from tests.monitoring.conftest import FIRST_DAY, reference_of_days

from .conftest import DAYS, ROWS


@pytest.mark.parametrize("column", ["_event_time", "when"])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_dataset_is_a_reference(
    ask: Callable[..., Any], days: list[dict[str, Any]], tmp_path: Path, suffix: str, column: str
) -> None:
    table = reference_of_days(days)
    table = table.rename_columns([column if name == "_event_time" else name for name in table.column_names])
    path = tmp_path / f"calm.{suffix}"
    (pq.write_table if suffix == "parquet" else pa_csv.write_csv)(table, path)

    reference = ask(f"dataset:{path}")

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS
    assert set(reference.bins) == {"temperature", "noise", "carrier", "is_weekend", "prediction"}
    assert set(ask(f"dataset:file://{path}").bins) == set(reference.bins)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, NotFound, "does not exist"),
        (b"no parquet", InvalidConfig, "cannot be read"),
        (pa.table({"a": pa.array([], pa.int64())}), InvalidConfig, "has no rows"),
        (pa.table({"a": [FIRST_DAY], "b": [FIRST_DAY]}), InvalidConfig, r"several columns of times \(a, b\): name the"),
        (pa.table({"_event_time": [FIRST_DAY, None]}), InvalidConfig, "1 rows have no _event_time"),
    ],
)
def test_a_dataset_that_is_none_is_a_clear_error(
    ask: Callable[..., Any], tmp_path: Path, content: bytes | pa.Table | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "data.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)

    with pytest.raises(error, match=message):
        ask(f"dataset:{path}")
