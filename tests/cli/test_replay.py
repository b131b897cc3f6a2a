"""Tests of `onnxserve replay` and `backtest`. See tests/promote/replay."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec, EndpointSpec, VariantSpec
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from tests.promote.replay.conftest import answering, empty_folder
from tests.support.classifiers import COLUMNS, labelled, write_classifier
from tests.support.commands import done, onnxserve, said
from tests.support.inference_log import LogWriter, write_answers
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions
from tests.support.stores import own_store

__all__ = ["answering", "empty_folder"]

ROWS = {name: labelled(3)[name] for name in ("a", "b")}
REFERENCE = {name: labelled(80, seed=5)[name] for name in ("a", "b")}
CAPTURED = labelled(300)


@pytest.fixture
def identity(answering):
    """The id of a request of three rows, of which the last is logged with another
    probability.
    """

    def change(outputs):
        outputs["probabilities"][2, 0] += np.float32(0.25)

    model = answering.register(write_classifier(answering.folder / "model", reference=REFERENCE))
    return answering.answer(model, ROWS, change=change)


def test_equal_request_is_computed_by_node(answering):
    model = answering.register(write_classifier(answering.folder / "model"))
    identity = answering.answer(model, ROWS)

    shown = done(f"replay {identity} --row 1 --nodes 2")

    lines = [line for line in shown.splitlines() if not line.startswith("not explained")]
    assert mentions(lines[0], "toys", "models:/toy/1")
    assert lines[1:3] == [
        "  prediction: equal to the bit",
        "  output.probabilities: equal to the bit",
    ]
    assert [line.split()[:2] for line in lines[4:7]] == [
        ["operator", "output"],
        ["Identity", "z"],
        ["MatMul", "s"],
    ]
    assert mentions(lines[7], "5 nodes", "--nodes")


@pytest.mark.long
def test_difference_is_shown_with_contributions(identity):
    result = onnxserve(f"replay {identity} --row 1 --nodes 0 --endpoint toys")

    assert result.exit_code == 1, result.output
    _, equal, different, title, header, *columns = result.stdout.splitlines()[:7]
    assert mentions(equal, "prediction", "equal")
    assert mentions(different, "output.probabilities", "DIFFERENT", "2, 0")
    assert mentions(title, "row 1", "80 rows")
    assert header.split() == ["column", "value", "contribution"]
    assert {line.split()[0] for line in columns} == {"a", "b"}


@pytest.mark.long
def test_json_has_the_whole_replay(identity):
    result = onnxserve(f"replay {identity} -o json --nodes 2")

    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["endpoint"], document["version"]) == ("toys", "models:/toy/1")
    assert document["is_equal"] is False
    assert document["outputs"][1]["index"] == [2, 0]
    assert document["inputs"]["a"] == ROWS["a"].tolist()
    assert [feature["name"] for feature in document["explanation"]["features"]] == ["a", "b"]
    assert np.shape(document["explanation"]["values"]) == (1, 2, 2)
    node = document["nodes"][0]
    assert (node["operator"], node["output"], node["type"]) == ("Identity", "z", "float64 [1, 2]")
    assert node["values"] == [ROWS["a"][0], ROWS["b"][0]]
    assert document["left_out"] == 5


@pytest.fixture(scope="module")
def pyfuncs(tmp_path_factory):
    return save_pyfuncs(tmp_path_factory.mktemp("pyfuncs"), ["troubled"])


def debug(identity, typed):
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "replay", identity, "--pdb"]
    return subprocess.run(
        command, input=typed, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.long
def test_pdb_stops_in_predict(answering, pyfuncs):
    model = answering.register(pyfuncs["troubled"])
    identity = answering.answer(model, {"do": ["echo"]})

    result = debug(identity, "p len(model_input)\nn\np what\nc\n")
    ended = debug(identity, "q\n")

    assert result.returncode == 0, result.stderr
    shown = result.stdout.splitlines()
    assert mentions(shown[0], "predict")
    assert "(Pdb) 1" in shown
    assert "(Pdb) 'echo'" in shown
    assert mentions(shown[-3], "prediction", "equal")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr


@pytest.fixture
def backtest(tmp_path, new_mlflow, monkeypatch, new_home):
    """A function that tests versions on the endpoint `flights`, whose version 1 has
    answered 300 rows, of which 100 have a label.
    """
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    writer = LogWriter(tmp_path / "log")
    folder = write_classifier(tmp_path / "equal")
    captured = {name: CAPTURED[name] for name in COLUMNS}
    write_answers(writer, folder, captured, datetime(2013, 7, 1, tzinfo=UTC))
    labels = enumerate(CAPTURED["label"][:100])
    writer.label(*(Label(f"1-{row}", None, None, int(label), 1) for row, label in labels))
    write_classifier(tmp_path / "worse", (1.0, 2.0))
    return lambda options: onnxserve(f"backtest flights {options}")


def test_backtest_prints_the_differences(backtest):
    result = backtest("--window 2013-07-01/1d --against worse")

    assert result.exit_code == 0, result.output
    assert mentions(result.stdout, "300 of 300", "flight-delay version 1", "disagreement")
    assert mentions(result.stdout, "accuracy", "refusals: 0 rows", "100 rows", "median")
    assert result.stdout.count("onnxserve replay 1-") == 5


def test_equal_version_has_no_disagreement(backtest):
    report = json.loads(backtest("--against equal --max-rows 200 --metric f1 -o json").stdout)

    assert report["captured_rows"] == 300
    assert report["rows"] == 200
    assert report["disagreement"] == 0
    assert report["comparison"]["metric"] == "f1"
    assert report["comparison"]["candidate"] == report["comparison"]["current"]


def test_masked_columns_are_not_replayed(backtest, monkeypatch, tmp_path):
    spec = EndpointSpec(
        name="flights",
        variants={"main": VariantSpec(model="models:/m/1")},
        capture=CaptureSpec(mask=("b",)),
    )
    with own_store() as store:
        store.add_endpoint("onnxserve", spec)
    assert mentions(said(backtest("--against equal")), "b", "mask", "capture.mask")

    # Without the store, it is not known which columns are masked.
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/file/store.db")
    assert mentions(said(backtest("--against equal")), "store")
