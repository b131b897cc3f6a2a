"""`onnxserve backtest NAME --against URI`. See tests/promote/replay for the figures."""

import json
from contextlib import closing
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec, EndpointSpec, VariantSpec
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from tests.support.classifiers import COLUMNS, labelled, write_classifier
from tests.support.commands import said
from tests.support.inference_log import LogWriter, write_answers
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

ROWS = labelled(300)


@pytest.fixture(autouse=True)
def served(tmp_path, new_database, monkeypatch):
    """The endpoint `flights`, whose version 1 has answered 300 rows, of which 100 have
    a label.
    """
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    writer = LogWriter(tmp_path / "log")
    folder = write_classifier(tmp_path / "equal")
    write_answers(
        writer, folder, {name: ROWS[name] for name in COLUMNS}, datetime(2013, 7, 1, tzinfo=UTC)
    )
    writer.label(*(Label(f"1-{row}", None, None, int(ROWS["label"][row]), 1) for row in range(100)))
    write_classifier(tmp_path / "worse", (1.0, 2.0))
    with tracking_at(new_database(tmp_path)):
        yield


def backtest(*arguments):
    return CliRunner().invoke(main, ["backtest", "flights", *arguments])


def test_the_lines_have_all_results_and_rows_to_look_at():
    result = backtest("--window", "2013-07-01/1d", "--against", "worse")

    assert result.exit_code == 0, result.output
    assert mentions(
        result.stdout, "300 of 300", "flight-delay version 1", "disagreement", "accuracy"
    )
    assert mentions(result.stdout, "refusals: 0 rows", "100 rows", "median", "with queues")
    assert result.stdout.count("onnxserve replay 1-") == 5


def test_json_has_the_same_results():
    report = json.loads(
        backtest("--against", "equal", "--max-rows", "200", "--metric", "f1", "-o", "json").stdout
    )

    assert report["captured_rows"] == 300
    assert report["rows"] == 200
    assert report["disagreement"] == 0
    assert report["comparison"]["metric"] == "f1"
    assert report["comparison"]["candidate"] == report["comparison"]["current"]


def test_a_window_without_rows_and_an_unknown_candidate_are_one_line():
    assert mentions(
        said(backtest("--since", "2013-07-02", "--against", "equal")),
        "flights",
        "onnxserve log stats flights",
    )
    assert mentions(said(backtest("--against", "models:/missing/8")), "missing")
    assert backtest("--window", "July", "--against", "equal").exit_code == 2


def test_masked_columns_are_known_from_the_endpoint():
    spec = EndpointSpec(
        name="flights",
        variants={"main": VariantSpec(model="models:/m/1")},
        capture=CaptureSpec(mask=("b",)),
    )
    with closing(open_store(load_settings().store_url)) as store:
        store.add_endpoint("onnxserve", spec)
    assert mentions(said(backtest("--against", "equal")), "b", "mask", "capture.mask")


def test_hashes_are_not_replayed_if_the_store_that_knows_the_masks_is_down(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/file/store.db")
    assert mentions(said(backtest("--against", "equal")), "store")
