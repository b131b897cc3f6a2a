"""Tests of `onnxserve explain`, `robustness` and `optimize`. See tests/wrap/evaluation
and tests/wrap/optimization for the results.
"""

import json

import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.wrap.optimization import measure
from tests.support.classifiers import labelled, write_classifier, write_rows
from tests.support.commands import onnxserve, told
from tests.support.networks import write_labelled, write_network
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory, new_database):
    """The current folder has a classifier `model` with labelled rows, and the registry
    has version 1 of `net`.
    """
    folder = tmp_path_factory.mktemp("evaluation")
    write_classifier(folder / "model")
    write_rows(folder / "rows.parquet", labelled(300))
    write_labelled(folder / "test.parquet")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.setattr(measure, "ROUND_SECONDS", 0.0005)
        patch.chdir(folder)
        client = MlflowClient()
        client.create_registered_model("net")
        client.create_model_version("net", write_network(folder / "models" / "net").as_uri())
        yield folder


EXPLAIN = "explain model --data rows.parquet --max-rows 10"
ROBUSTNESS = "robustness model --data rows.parquet --target label"


@pytest.mark.long
def test_explain_orders_columns_by_importance(folder):
    done = onnxserve(f"{EXPLAIN} --target label --contributions rows.jsonl --folder explained")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[:2] == ["column", "mean |SHAP|"]
    assert mentions(lines[0], "accuracy")
    assert [line.split()[0] for line in lines[1:3]] == ["a", "b"]
    assert mentions(lines[3], "10 rows", "permutations", "seed 0")
    assert lines[4:] == ["contributions in rows.jsonl", "4 files in explained"]
    assert done.stderr.splitlines() == ["explaining 10 rows", "permuting 2 columns of 300 rows"]
    assert len(pd.read_json(folder / "rows.jsonl", lines=True)) == 20

    document = told(EXPLAIN)
    assert [entry["column"] for entry in document["importance"]] == ["a", "b"]
    assert document["importance"][0]["permutation"] is None


def test_robustness_has_a_line_per_strength(folder):
    done = onnxserve(f"{ROBUSTNESS} --strengths noise=0.1,2 --strengths typos --folder disturbed")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "disturbance",
        "strength",
        "accuracy",
        "loss",
        "no",
        "number",
        "worst",
        "at",
    ]
    assert [line.split()[:2] for line in lines[2:4]] == [["noise", "0.1"], ["noise", "2"]]
    assert mentions(lines[4], "typos", "text inputs")
    assert lines[5:] == ["300 rows, seed 0", "2 files in disturbed"]
    assert done.stderr == "measuring noise\n"
    assert {file.name for file in (folder / "disturbed").iterdir()} == {
        "noise.png",
        "robustness.json",
    }

    done = onnxserve(f"{ROBUSTNESS} --strengths scale=10 --metric roc_auc -o json")
    report = json.loads(done.stdout)
    assert report["metric"] == "roc_auc"
    (point,) = report["points"]
    assert (point["disturbance"], point["variant"]) == ("scale", "b")


@pytest.mark.long
def test_optimized_form_is_compared_and_registered(folder):
    done = onnxserve("optimize models:/net/1 --fp16 --data test.parquet --target label")
    assert done.exit_code == 0, done.output
    head, base, form, registered = done.stdout.splitlines()
    assert head.split("  ")[0] == "form"
    assert base.startswith("base")
    assert "(1.00)" in base
    assert "% equal labels" in form
    assert mentions(form, "accuracy 1.0000", "base 1.0000", "200 rows")
    assert registered.startswith("registered net version ")
    assert mentions(registered, "fp16", "models:/net/1")
    assert "creating fp16" in done.stderr


@pytest.mark.long
def test_optimize_refuses_a_large_loss(folder):
    done = onnxserve("optimize models:/net/1 --int8 dynamic --max-loss 0")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[2].startswith("int8 dynamic")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert mentions(line, "limit of 0")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (
            f"{EXPLAIN} --contributions rows.txt",
            ["rows.txt", ".csv, .json, .jsonl or .parquet"],
        ),
        (f"{EXPLAIN} --target gone", ["'gone'", "a, b, label, value"]),
        (f"{EXPLAIN} --max-evals 2", ["max_evals is 2", "5"]),
        (f"{EXPLAIN} --folder /dev/null/out", ["/dev/null/out", "Not a directory"]),
        (f"{ROBUSTNESS} --data gone.csv", ["dataset gone.csv"]),
        (f"{ROBUSTNESS} --strengths noise=0.1 --log", ["run r-1"]),
        ("optimize models:/net/9 --fp16", ["model net", "version 9", "versions: 1"]),
    ],
)
def test_impossible_evaluation_is_refused(folder, line, names):
    done = onnxserve(line)
    assert done.exit_code == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert mentions(error, *names)
    assert "measuring" not in done.stderr
