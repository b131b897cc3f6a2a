from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest

from mlflow_deploy_plugin.agent.sink import open_sink, parquet
from mlflow_deploy_plugin.errors import InvalidConfig
from tests.support.disk import files_of_at_most


@pytest.mark.parametrize("as_text", [str, Path.as_uri])
def test_a_file_stands_whole_below_the_folder_and_is_replaced_by_a_later_one(
    tmp_path: Path, as_text: Callable[[Path], str]
) -> None:
    sink = open_sink(as_text(tmp_path / "a log"))
    for values in ([1], [1, 2]):
        sink.write("endpoint=e/date=2026-06-01/f.parquet", parquet(pa.table({"a": values})))
    assert [path.name for path in (tmp_path / "a log").rglob("*") if path.is_file()] == ["f.parquet"]
    found = pyarrow.dataset.dataset(str(tmp_path / "a log"), partitioning="hive").to_table()
    assert found.to_pylist() == [
        {"a": 1, "endpoint": "e", "date": "2026-06-01"},
        {"a": 2, "endpoint": "e", "date": "2026-06-01"},
    ]


def test_a_full_disk_keeps_no_part_of_a_file(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "log"))
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        sink.write("f.parquet", parquet(pa.table({"a": list(range(1000))})))
    assert list((tmp_path / "log").iterdir()) == []


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3:///x", "https://host/x"])
def test_a_log_that_cannot_be_written_to_is_refused_with_what_can(uri: str) -> None:
    with pytest.raises(InvalidConfig, match=r"ONNXSERVE_LOG_URI: .* is neither a folder nor s3://BUCKET/PREFIX"):
        open_sink(uri)
