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


def seen(agreement):
    differences = agreement.differences.tolist() if agreement.are_numbers else []
    return agreement.same.tolist(), [round(value, 5) for value in differences]


def test_labels_decide_and_probabilities_are_the_difference():
    answer = {"label": texts("no", "yes"), "p": numbers([0.75, 0.25], [0.25, 0.75])}
    computed = {"label": texts("no", "no"), "p": numbers([0.5, 0.5], [0.75, 0.25])}
    assert seen(compare_outputs(CLASSIFIER, answer, CLASSIFIER, computed)) == (
        [True, False],
        [0.25, 0.5],
    )


def test_classes_in_another_order_are_the_same_classes():
    other = artifact(CHANCES, classes=("yes", "no"))
    computed = {"p": numbers([0.25, 0.75], [0.5, 0.5])}
    answer = {"label": texts("no", "no"), "p": numbers([0.75, 0.25], [0.25, 0.75])}
    assert seen(compare_outputs(CLASSIFIER, answer, other, computed)) == (
        [True, False],
        [0.0, 0.25],
    )


def test_other_classes_have_labels_and_no_difference():
    other = artifact(LABEL, CHANCES, classes=("maybe", "yes"))
    answer = {"label": texts("no"), "p": numbers([0.75, 0.25])}
    assert seen(compare_outputs(CLASSIFIER, answer, other, answer | {"label": texts("maybe")})) == (
        [False],
        [],
    )


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
def test_numbers_agree_within_a_hundredth_of_the_larger_one(given, computed, same, difference):
    comparison = compare_outputs(
        REGRESSOR, {"y": numbers(*given)}, REGRESSOR, {"y": numbers(*computed)}
    )
    assert comparison.same.tolist() == [same]
    assert comparison.differences.tolist() == pytest.approx([difference], abs=1e-5)


def test_integers_without_a_role_are_equal_or_not():
    counts = artifact(Output("n", "int64", (-1, 2)))
    comparison = compare_outputs(
        counts, {"n": np.array([[1000, 1]])}, counts, {"n": np.array([[1001, 1]])}
    )
    assert seen(comparison) == ([False], [])


def test_a_pyfuncs_prediction_is_compared_with_a_label():
    pyfunc = artifact(Output("prediction", "str", (-1,)), flavor="python_function")
    comparison = compare_outputs(
        CLASSIFIER, {"label": texts("no", "yes")}, pyfunc, {"prediction": texts("no", "no")}
    )
    assert seen(comparison) == ([True, False], [])


def test_the_first_output_of_a_stock_classifier_is_its_label():
    stock = artifact(Output("a", "int64", (-1,)), Output("b", "float32", (-1, 2)), flavor="onnx")
    answer = {"a": np.array([0, 1]), "b": numbers([0.75, 0.25], [0.25, 0.75])}
    computed = {"a": np.array([0, 0]), "b": numbers([0.5, 0.5], [0.75, 0.25])}
    assert seen(compare_outputs(stock, answer, stock, computed)) == ([True, False], [0.25, 0.5])


def test_an_output_of_another_name_is_found_by_its_place():
    other = artifact(Output("z", "float64", (-1,), "values"))
    assert seen(compare_outputs(REGRESSOR, {"y": numbers([1.0])}, other, {"z": numbers(2.0)})) == (
        [False],
        [1.0],
    )


@pytest.mark.parametrize(
    "computed",
    [{"y": numbers([1.0], [2.0])}, {"y": numbers([1.0, 2.0])}, {}, {"y": np.float32(1.0)}],
)
def test_answers_that_cannot_be_compared_say_so(computed):
    with pytest.raises(InferenceError):
        compare_outputs(
            REGRESSOR,
            {"y": numbers([1.0])},
            REGRESSOR,
            {name: np.asarray(a) for name, a in computed.items()},
        )
