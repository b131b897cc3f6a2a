"""Tests of labels that are written directly into a log with masked columns.
tests/cli/test_predict.py tests the command.
"""

from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec, new_endpoint
from mlflow_deploy_plugin.serve.spool.captured_model import ColumnMask
from tests.support.commands import onnxserve, said
from tests.support.inference_log import LogWriter
from tests.support.refusals import mentions


def feedback(*arguments, given=None):
    return onnxserve("feedback", *arguments, given=given)


@pytest.fixture
def masked_log(tmp_path, monkeypatch, new_home):
    """Create the log of an endpoint that is not in the store, with the masked column
    `carrier`, and a file of one label.
    """
    log = tmp_path / "home" / "inference_log"
    key = tmp_path / "home" / "mask.key"
    key.parent.mkdir()
    key.write_text("ab" * 32)
    carriers = ColumnMask(key).hash_values({"carrier": "UA"}, frozenset({"carrier"}))["carrier"]
    LogWriter(log).write(
        {"_event_time": [datetime(2013, 7, 1, tzinfo=UTC)], "carrier": [carriers], "flight": [7]},
        endpoint="sums",
    )
    (tmp_path / "labels.csv").write_text("carrier,flight,label\nUA,7,1\n")
    monkeypatch.chdir(tmp_path)
    return log


def test_keys_are_masked_by_the_server_spec(masked_log, tmp_path):
    folder = tmp_path / "home" / "serve" / "others-8080"
    folder.mkdir(parents=True)
    specs = [
        new_endpoint("others", "m"),
        apply_config(new_endpoint("sums", "m"), {"capture.mask": "carrier"}),
    ]
    (folder / "spec.yaml").write_text("---\n".join(map(dump_spec, specs)))
    command = ("sums", "--file", "labels.csv", "--key", "carrier,flight")

    failed = feedback(*command)
    assert mentions(said(failed), "carrier", "the key of the mask")

    (tmp_path / "home" / "mask.key").rename(folder / "mask.key")
    assert mentions(feedback(*command).stdout, "1 of 1")
    (brought,) = (masked_log / "_labels").rglob("*.parquet")
    assert "UA" not in str(pq.ParquetFile(brought).read().to_pylist())


def test_masked_log_without_spec_is_refused(masked_log):
    line = said(feedback("sums", "--file", "labels.csv", "--key", "carrier,flight"))
    assert line.startswith(
        "carrier looks masked in the log, and no spec of sums is on this machine"
    )
    assert not (masked_log / "_labels").exists()
    assert feedback("sums", "--file", "labels.csv", "--key", "flight").exit_code == 0


def test_labels_are_not_matched_without_duckdb(masked_log, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.ship.deployments.feedback.find_spec", {}.get)

    ended = feedback("sums", "--file", "labels.csv", "--key", "flight")

    assert ended.exit_code == 0
    assert "1 labels accepted" in ended.stdout
    assert "in the log" not in ended.stdout
