"""Tests of the parity line of a run."""

from projects.model_runs import parity_line
from tests.support.refusals import mentions


def test_the_line_says_state_rows_and_the_largest_errors():
    metrics = {
        "train_roc_auc": 0.75,
        "onnxserve.parity.rows": 3727.0,
        "onnxserve.parity.beyond_tolerance": 0.0,
        "onnxserve.parity.label.agreement": 1.0,
        "onnxserve.parity.probabilities.agreement": 1.0,
        "onnxserve.parity.probabilities.max_absolute_error": 1.96e-05,
        "onnxserve.parity.probabilities.max_relative_error": 1e-04,
    }
    line = parity_line("proven", metrics)
    assert mentions(line, "3,727 rows", "label", "100.00%", "probabilities", "2.0e-05")


def test_the_error_of_values_far_from_those_of_training_is_relative():
    names = (
        "rows",
        "prediction.agreement",
        "prediction.max_absolute_error",
        "prediction.max_relative_error",
    )
    figures = (2800.0, 1.0, 82.6, 6e-06)
    metrics = {
        f"onnxserve.parity.{name}": figure for name, figure in zip(names, figures, strict=True)
    }
    assert mentions(parity_line("proven", metrics), "2,800 rows", "prediction", "6.0e-06")


def test_a_model_without_an_original_has_no_figures():
    assert parity_line("no-original", {}) == "parity no-original"
