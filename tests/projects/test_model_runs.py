"""The parity of a run as one line."""

from projects.model_runs import parity_line


def test_the_line_says_state_rows_and_the_largest_errors() -> None:
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
    assert line == "parity proven on 3,727 rows: label equal in 100.00%, probabilities within 2.0e-05"


def test_a_model_without_an_original_has_no_figures() -> None:
    assert parity_line("no-original", {}) == "parity no-original"
