"""Tests that outputs for the same rows agree
if labels are equal and numbers are close.
"""

from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.serve.runtime.shadow_compare import compare_outputs

LABEL = Output("label", "str", (-1,), "label")
CHANCES = Output("p", "float32", (-1, 2), "probabilities")
VALUES = Output("y", "float32", (-1, 1), "values")


def artifact(*outputs, classes=(), flavor="onnxserve"):
    answered = tuple(output.name for output in outputs if output.role != "probabilities")
    return Artifact(
        Path(), Path(), flavor, "3", "", "", outputs=outputs, classes=classes, prediction=answered
    )


CLASSIFIER = artifact(LABEL, CHANCES, classes=("no", "yes"))
REGRESSOR = artifact(VALUES)


def texts(*values):
    return np.array(values, dtype=object)


def numbers(*values):
    return np.array(values, dtype=np.float32)


def seen(model, answer, other, computed):
    agreement = compare_outputs(model, answer, other, computed)
    differences = agreement.differences.tolist() if agreement.are_numbers else []
    return agreement.same.tolist(), [round(value, 5) for value in differences]


SURE = numbers([0.75, 0.25], [0.25, 0.75])
STOCK = artifact(Output("a", "int64", (-1,)), Output("b", "float32", (-1, 2)), flavor="onnx")
COUNTS = artifact(Output("n", "int64", (-1, 2)))
CASES = {
    "labels decide, probabilities are the difference": (
        CLASSIFIER,
        {"label": texts("no", "yes"), "p": SURE},
        CLASSIFIER,
        {"label": texts("no", "no"), "p": numbers([0.5, 0.5], [0.75, 0.25])},
        ([True, False], [0.25, 0.5]),
    ),
    "classes in another order": (
        CLASSIFIER,
        {"label": texts("no", "no"), "p": SURE},
        artifact(CHANCES, classes=("yes", "no")),
        {"p": numbers([0.25, 0.75], [0.5, 0.5])},
        ([True, False], [0.0, 0.25]),
    ),
    "other classes": (
        CLASSIFIER,
        {"label": texts("no"), "p": SURE[:1]},
        artifact(LABEL, CHANCES, classes=("maybe", "yes")),
        {"label": texts("maybe"), "p": SURE[:1]},
        ([False], []),
    ),
    "integers without a role": (
        COUNTS,
        {"n": np.array([[1000, 1]])},
        COUNTS,
        {"n": np.array([[1001, 1]])},
        ([False], []),
    ),
    "a label and a pyfunc's prediction": (
        CLASSIFIER,
        {"label": texts("no", "yes")},
        artifact(Output("prediction", "str", (-1,)), flavor="python_function"),
        {"prediction": texts("no", "no")},
        ([True, False], []),
    ),
    "the first output of a stock classifier is its label": (
        STOCK,
        {"a": np.array([0, 1]), "b": SURE},
        STOCK,
        {"a": np.array([0, 0]), "b": numbers([0.5, 0.5], [0.75, 0.25])},
        ([True, False], [0.25, 0.5]),
    ),
    "an output of another name": (
        REGRESSOR,
        {"y": numbers([1.0])},
        artifact(Output("z", "float64", (-1,), "values")),
        {"z": numbers(2.0)},
        ([False], [1.0]),
    ),
}


@pytest.mark.parametrize(
    ("model", "answer", "other", "computed", "expected"), CASES.values(), ids=CASES
)
def test_outputs_are_compared_by_their_role(model, answer, other, computed, expected):
    assert seen(model, answer, other, computed) == expected


@pytest.mark.parametrize(
    ("given", "computed", "same", "difference"),
    [
        ([[100.0]], [[100.9]], True, 0.9),
        ([[100.0]], [[102.0]], False, 2.0),
        ([[101.0]], [[100.0]], True, 1.0),
        ([[0.0]], [[5e-7]], True, 0.0),
        ([[1.0, 5.0]], [[1.0, 5.5]], False, 0.5),
        ([[1.0]], [[np.nan]], False, np.inf),
    ],
)
def test_numbers_agree_within_one_percent(given, computed, same, difference):
    comparison = compare_outputs(
        REGRESSOR, {"y": numbers(*given)}, REGRESSOR, {"y": numbers(*computed)}
    )
    assert comparison.same.tolist() == [same]
    assert comparison.differences.tolist() == pytest.approx([difference], abs=1e-5)


@pytest.mark.parametrize(
    "computed",
    [{"y": numbers([1.0], [2.0])}, {"y": numbers([1.0, 2.0])}, {}, {"y": np.float32(1.0)}],
)
def test_incomparable_outputs_are_an_error(computed):
    with pytest.raises(InferenceError):
        compare_outputs(
            REGRESSOR,
            {"y": numbers([1.0])},
            REGRESSOR,
            {name: np.asarray(a) for name, a in computed.items()},
        )
