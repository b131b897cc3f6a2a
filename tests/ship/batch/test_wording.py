"""The wording of the errors of a batch."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.ship.batch.run import BatchPlan, run_batch
from tests.support.messages import message_of

from .conftest import flights

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({"input": "gone"}, "--input gone: the file or folder does not exist"),
    "an empty folder": ({"input": "empty"}, "--input empty: the folder has no files"),
    "a file of an unknown format": (
        {"input": "in/rows"},
        (
            "--input in/rows: the name of rows does not have one of the formats csv, jsonl, "
            "parquet; set --input-format"
        ),
    ),
    "an output that is a file": (
        {"output": "in/rows"},
        "--output in/rows cannot be written: File exists",
    ),
    "an output within the input": (
        {"input": "in", "output": "in/out"},
        (
            "--input in: the name of rows does not have one of the formats csv, jsonl, parquet; "
            "set --input-format"
        ),
    ),
    "a folder of other files": (
        {"output": "foreign"},
        "--output foreign contains rows, which is not from a batch: specify another folder",
    ),
    "an unknown column": (
        {"keep": ("nothing",)},
        (
            "a.parquet: --keep nothing: no such column; the columns are id, ts, carrier, distance, "
            "hour, late"
        ),
    ),
    "a missing column": (
        {"input": "short"},
        (
            "a.parquet: column 'late' is missing; 'id' is not known; the model needs carrier, "
            "distance, hour, late"
        ),
    ),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_a_refusal_names_the_option_and_the_file(options, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "empty", "foreign", "short"):
        Path(folder).mkdir()
    rows = flights(10)
    pq.write_table(rows, "in/a.parquet")
    pq.write_table(rows.drop_columns("late"), "short/a.parquet")
    for name in ("in/rows", "foreign/rows"):
        Path(name).write_text("text")
    fields = {"input": "in/a.parquet", "output": "out", "workers": 1, **options}
    refusal = message_of(lambda: run_batch(BatchPlan(str(model), **fields)))
    assert refusal.replace(f"{tmp_path}/", "") == message
