import numpy as np
import pytest

from mlflow_deploy_plugin.core.registry.policy import RobustnessPolicy
from mlflow_deploy_plugin.promote.gate.checks.robustness import check_robustness
from mlflow_deploy_plugin.wrap.evaluation.model import load_version
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_regressor
from tests.support.refusals import mentions

ROWS = labelled(500)
INPUT = {name: ROWS[name] for name in COLUMNS}


def checked(model, rows=INPUT, **fields):
    return check_robustness(model, rows, RobustnessPolicy(**fields), seed=7)


def test_smooth_model_passes(tmp_path):
    model = load_version(write_classifier(tmp_path / "model"))
    result = checked(model)
    assert result.state == "passed"
    assert 0 < result.figures["noise_flips"] < 0.1
    assert result.figures["out_of_range_flips"] > result.figures["noise_flips"]
    assert "noise_loss" not in result.figures
    assert result == checked(model)


def test_table_has_the_sensitive_columns(tmp_path):
    model = load_version(
        write_classifier(
            tmp_path / "model", (3.0, 0.5, 0.0), columns=("a", "b", "c"), types=("double",) * 3
        )
    )
    rows = {**INPUT, "c": ROWS["value"]}
    table = checked(model, rows, noise=0.3).table
    assert table is not None
    assert [line[0] for line in table.lines[:4]] == [
        "noise",
        "missing",
        "out-of-range",
        "noise in a",
    ]
    changed = {line[0]: float(line[1].rstrip("%")) for line in table.lines}
    assert changed["noise in a"] > changed["noise in b"] > 0
    assert "noise in c" not in changed


def test_unstable_model_fails_with_share_of_flips(tmp_path):
    """The model returns the fraction of the input times a thousand, so that small noise
    changes its answer.
    """
    extra = """k = Constant <value = double[1] {1000.0}> ()
        m = Mul(x, k)
        f = Floor(m)
        r = Sub(m, f)
        h = Constant <value = double[1] {0.5}> ()
        z = Sub(r, h)"""
    model = load_version(write_classifier(tmp_path / "model", extra=extra))
    result = checked(model)
    assert result.state == "failed"
    assert mentions(result.reason, "noise of 5%", "10.0%")
    assert result.figures["noise_flips"] == pytest.approx(0.5, abs=0.1)


def test_metric_loss_is_judged_with_labels(tmp_path):
    model = load_version(write_classifier(tmp_path / "model"))
    lenient = RobustnessPolicy(noise=3.0, max_flips=1.0)
    result = check_robustness(model, INPUT, lenient, seed=7, truth=ROWS["label"])
    assert result.state == "failed"
    assert "metric loses 0." in result.reason
    assert result.figures["noise_loss"] > 0.1
    assert check_robustness(model, INPUT, lenient, seed=7).state == "passed"


def test_flip_of_a_number_is_a_quarter_spread(tmp_path):
    model = load_version(write_regressor(tmp_path / "model"))
    assert checked(model, noise=0.05).figures["noise_flips"] == 0
    assert checked(model, noise=0.5).figures["noise_flips"] > 0.5


def test_unanswered_missing_values_fail_only_strict_policy(tmp_path):
    model = load_version(write_regressor(tmp_path / "model"))
    lenient = checked(model)
    assert lenient.state == "passed"
    assert lenient.figures["missing_no_answer"] == pytest.approx(0.2, abs=0.05)
    strict = checked(model, refusals="fail")
    assert strict.state == "failed"
    assert mentions(strict.reason, "missing values", "not numbers")


def test_refused_missing_values_fail_only_strict_policy(tmp_path):
    model = load_version(write_classifier(tmp_path / "model", types=("long", "long")))
    rows = {name: np.arange(100) for name in COLUMNS}
    lenient = checked(model, rows, max_flips=1.0)
    assert lenient.state == "passed"
    assert lenient.figures["missing_refused"] == 1
    assert lenient.notes[0].startswith("missing values are refused: column 'a' (long), row ")
    strict = checked(model, rows, max_flips=1.0, refusals="fail")
    assert strict.state == "failed"
    assert strict.reason == lenient.notes[0]


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_tiny_error_of_a_regressor_passes(tmp_path, metric):
    model = load_version(write_regressor(tmp_path / "model"))
    truth = model.predict(INPUT).prediction + np.random.default_rng(0).normal(size=500) * 1e-6
    result = check_robustness(model, INPUT, RobustnessPolicy(), 7, truth, metric)
    assert result.state == "passed"
    assert 0.01 < result.figures["noise_loss"] < 0.05


def test_flips_fail_only_if_worse_than_served(tmp_path):
    model = load_version(write_classifier(tmp_path / "model"))
    better = load_version(write_classifier(tmp_path / "other", (1.0, 0.0)))
    rows = {"a": np.sort(INPUT["a"]) / 1e3, "b": INPUT["b"] / 1e3 * 0}
    strict = RobustnessPolicy(noise=0.5)
    alone = check_robustness(model, rows, strict, 7)
    assert alone.state == "failed"
    same = check_robustness(model, rows, strict, 7, current=(model, rows), against="models:/m/1")
    assert same.state == "passed"
    assert same.figures["noise_flips_current"] == same.figures["noise_flips"]
    assert mentions(same.notes[-1], "models:/m/1")
    steady = {name: np.where(values > 0, 1.0, -1.0) for name, values in rows.items()}
    assert check_robustness(model, rows, strict, 7, current=(better, steady)).state == "failed"
