"""The error messages of explanations, curves and metrics."""

from pathlib import Path
from typing import Any

import pytest

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.spec.evaluation_names import check_strengths, parse_strengths
from tests.support.classifiers import labelled, write_classifier
from tests.support.messages import message_of

ROWS = labelled(60)
MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown target": (
        {"target": "gone"},
        "the data has no column 'gone'; it has a, b, label, value",
    ),
    "no data": (
        {"data": {}},
        "the data needs non-empty arrays of equal length; its arrays are none",
    ),
    "columns of different lengths": (
        {"data": {"a": [1, 2], "label": [1]}},
        "the data needs non-empty arrays of equal length; its arrays are a [2], label [1]",
    ),
    "a single row": (
        {"data": {name: values[:1] for name, values in ROWS.items()}},
        "the data has one row with a known target; a standard deviation needs at least two",
    ),
    "a file that does not exist": ({"data": "gone.csv"}, "the dataset gone.csv does not exist"),
    "an unknown metric": (
        {"metric": "r2"},
        "there is no metric 'r2'; the metrics are accuracy, f1, roc_auc, log_loss, rmse, mae",
    ),
    "no texts": (
        {"strengths": {"typos": []}},
        "no disturbance can be measured: typos: the model has no text inputs",
    ),
}
STRENGTHS: dict[str, str] = {
    "noise=-1": "noise cannot have the strength -1.0; a number above 0, up to 1e+06, is expected",
    "missing=1.5": "missing cannot have the strength 1.5; a share above 0, up to 1, is expected",
    "noise=much": (
        "--strengths 'noise=much' is not NAME=STRENGTH,STRENGTH,… with numbers, such as "
        "noise=0.1,0.5"
    ),
    "nois=1": "there is no disturbance 'nois'; did you mean 'noise'?",
    "noise=" + ",".join(map(str, range(1, 22))): "noise has 21 strengths; at most 20 are measured",
}


@pytest.mark.parametrize(
    ("change", "message"),
    MESSAGES.values(),
    ids=MESSAGES,
)
def test_a_refusal_names_the_cause(
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "data": ROWS,
        "target": "label",
        "strengths": {"noise": [0.1]},
        **change,
    }
    model = str(write_classifier(tmp_path / "model"))
    assert (
        message_of(
            lambda: onnxserve.robustness(
                model,
                options.pop("data"),
                options.pop("target"),
                **options,
            ),
        )
        == message
    )


@pytest.mark.parametrize(("entry", "message"), STRENGTHS.items())
def test_a_refused_strength_is_named_with_the_expected_form(entry: str, message: str) -> None:
    assert message_of(lambda: check_strengths(parse_strengths([entry]))) == message
