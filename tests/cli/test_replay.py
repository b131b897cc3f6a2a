"""Tests of `onnxserve replay PREDICTION_ID`.
See tests/promote/replay for the results.
"""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import requests
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from tests.promote.replay.conftest import answering
from tests.support.classifiers import labelled, write_classifier
from tests.support.commands import said
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions
from tests.support.waiting import free_port as find_free_port
from tests.support.waiting import wait_until

__all__ = ["answering"]

ROWS = {name: labelled(3)[name] for name in ("a", "b")}
REFERENCE = {name: labelled(80, seed=5)[name] for name in ("a", "b")}


def replay(*arguments, typed=None):
    return CliRunner().invoke(main, ["replay", *arguments], input=typed)


@pytest.fixture
def identity(answering):
    """The id of a request of three rows, of which the last is logged with another
    probability.
    """

    def change(outputs):
        outputs["probabilities"][2, 0] += np.float32(0.25)

    model = answering.register(write_classifier(answering.folder / "model", reference=REFERENCE))
    return answering.answer(model, ROWS, change=change)


def test_an_equal_request_is_computed_node_by_node(answering):
    identity = answering.answer(
        answering.register(write_classifier(answering.folder / "model")), ROWS
    )

    result = replay(identity, "--row", "1", "--nodes", "2")

    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if not line.startswith("not explained")]
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
def test_the_contributions_of_the_columns_are_a_table(identity):
    result = replay(identity, "--row", "1", "--nodes", "0")

    assert result.exit_code == 1, result.output
    title, header, *columns = result.stdout.splitlines()[3:7]
    assert mentions(title, "row 1", "80 rows")
    assert header.split() == ["column", "value", "contribution"]
    assert {line.split()[0] for line in columns} == {"a", "b"}


def test_a_difference_ends_with_status_1_and_possible_causes(identity):
    result = replay(identity, "--nodes", "0", "--endpoint", "toys")

    assert result.exit_code == 1
    _, equal, different = result.stdout.splitlines()[:3]
    assert mentions(equal, "prediction", "equal")
    assert mentions(different, "output.probabilities", "DIFFERENT", "2, 0")


@pytest.mark.long
def test_json_holds_everything_for_programs(identity):
    result = replay(identity, "-o", "json", "--nodes", "2")

    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["endpoint"] == "toys"
    assert document["version"] == "models:/toy/1"
    assert document["is_equal"] is False
    assert document["outputs"][1]["index"] == [2, 0]
    assert document["inputs"]["a"] == ROWS["a"].tolist()
    assert [feature["name"] for feature in document["explanation"]["features"]] == ["a", "b"]
    assert np.shape(document["explanation"]["values"]) == (1, 2, 2)
    assert document["nodes"][0] == {
        "operator": "Identity",
        "output": "z",
        "type": "float64 [1, 2]",
        "values": [ROWS["a"][0], ROWS["b"][0]],
        "nan": 0,
        "infinite": 0,
    }
    assert document["left_out"] == 5


def test_bad_input_gives_a_line(identity):
    assert mentions(said(replay("p-1")), "p-1", "capture.retention")
    assert mentions(said(replay(identity, "--row", "7")).splitlines()[-1], "--row 7", "0 to 2")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["p", "--max-rows", "9"], "--max-rows"), (["p", "--row", "-1"], "--row")],
)
def test_unknown_options_and_rows_are_refused(arguments, name):
    result = replay(*arguments)
    assert result.exit_code == 2
    assert mentions(result.stderr, name)


@pytest.fixture(scope="module")
def pyfuncs(tmp_path_factory):
    return save_pyfuncs(tmp_path_factory.mktemp("pyfuncs"), ["troubled"])


def debug(identity, typed):
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "replay", identity, "--pdb"]
    return subprocess.run(
        command, input=typed, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.long
def test_pdb_stops_in_the_first_line_of_predict(answering, pyfuncs):
    model = answering.register(pyfuncs["troubled"])
    identity = answering.answer(model, {"do": ["echo"]})

    result = debug(identity, "p len(model_input)\nn\np what\nc\n")

    assert result.returncode == 0, result.stderr
    shown = result.stdout.splitlines()
    assert mentions(shown[0], "predict")
    assert "(Pdb) 1" in shown
    assert "(Pdb) 'echo'" in shown
    assert mentions(shown[-3], "prediction", "equal")
    ended = debug(identity, "q\n")
    assert (ended.returncode, ended.stderr.count("\n"), "Traceback" in ended.stderr) == (
        1,
        1,
        False,
    )


@pytest.mark.long
def test_a_served_prediction_is_replayed_by_its_id(answering, serve, pyfuncs, monkeypatch):
    answering.register(write_classifier(answering.folder / "model", reference=REFERENCE))
    answering.register(pyfuncs["troubled"], "troubled")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{answering.folder / 'mlflow.db'}")
    rows = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    for name, records in (("toy", rows), ("troubled", [{"do": "echo"}])):
        served = serve(
            f"models:/{name}/1", "--name", name, "-p", str(find_free_port()), state=name
        ).wait_ready()
        answer = requests.post(
            f"{served.url}/invocations", json={"dataframe_records": records}, timeout=60
        )
        identity = answer.headers["X-Prediction-Id"]
        log = open_log(load_settings().inference_log)
        wait_until(partial(log.hours, name), 30, "the row is logged")

        result = replay(identity)

        assert result.exit_code == 0, result.output
        assert mentions(result.stdout, "equal to the bit")
