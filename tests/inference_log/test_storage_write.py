"""Writing a file of the log: it is there whole or not at all."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest

from mlflow_deploy_plugin.inference_log import locate_log
from mlflow_deploy_plugin.inference_log.storage import encode_parquet, write_file
from tests.support.disk import files_of_at_most


@pytest.mark.parametrize("as_text", [str, Path.as_uri])
def test_a_file_stands_whole_below_the_folder_and_is_replaced_by_a_later_one(
    tmp_path: Path, as_text: Callable[[Path], str]
) -> None:
    location = locate_log(as_text(tmp_path / "a log"))
    for values in ([1], [1, 2]):
        write_file(location, "endpoint=e/date=2026-06-01/f.parquet", encode_parquet(pa.table({"a": values})))
    assert [path.name for path in (tmp_path / "a log").rglob("*") if path.is_file()] == ["f.parquet"]
    found = pyarrow.dataset.dataset(str(tmp_path / "a log"), partitioning="hive").to_table()
    assert found.to_pylist() == [
        {"a": 1, "endpoint": "e", "date": "2026-06-01"},
        {"a": 2, "endpoint": "e", "date": "2026-06-01"},
    ]


def test_a_full_disk_keeps_no_part_of_a_file(tmp_path: Path) -> None:
    location = locate_log(str(tmp_path / "log"))
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_file(location, "f.parquet", encode_parquet(pa.table({"a": list(range(1000))})))
    assert list((tmp_path / "log").iterdir()) == []
