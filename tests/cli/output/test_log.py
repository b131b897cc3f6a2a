"""Rows of the log as a table, and sizes for people. The command: tests/cli/test_log.py."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from mlflow_deploy_plugin.cli.output.log import size_text, table_lines
from mlflow_deploy_plugin.inference_log.query import QueryResult


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (10**15, "1000.0 TB")]
)
def test_a_size_has_the_unit_that_keeps_it_short(size: float, text: str) -> None:
    assert size_text(size) == text


def test_numbers_stand_right_and_what_is_long_or_missing_is_shortened() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "count": [1, 10, None],
            "text": ["x" * 60, "a\nb", None],
            "at": [datetime(2013, 7, 1, tzinfo=UTC), datetime(2013, 7, 1, 0, 0, 0, 250_000, tzinfo=UTC), None],
        }
    )

    lines = list(table_lines(QueryResult(batch.schema, iter([batch])), 2))

    assert lines[0].split() == ["count", "text", "at"]
    assert lines[1] == f"    1  {'x' * 39}…  2013-07-01 00:00:00"
    assert lines[2].split() == ["10", "a", "b", "2013-07-01", "00:00:00.25"]
    assert lines[3] == "… and more: --limit says how many, 2 now"
