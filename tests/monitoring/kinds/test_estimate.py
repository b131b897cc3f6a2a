"""What a classifier's own confidence lets expect, beside what turns out to be true."""

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.kinds.estimate import Earlier, Estimate, estimate, expected
from mlflow_deploy_plugin.monitoring.kinds.intervals import Measure, Sampling
from mlflow_deploy_plugin.monitoring.kinds.measures import CLASSIFICATION, Classified, classification


def window(seed: int, classes: int = 2, rows: int = 10_000, overconfident: float = 1.0) -> tuple[Earlier, np.ndarray]:
    """Answers whose truth is drawn by their chances; what the model says of them is sharper by a power."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.ones(classes), rows)
    truth = (chances.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    said = chances**overconfident / (chances**overconfident).sum(axis=1, keepdims=True)
    return Earlier(truth, Classified(said.argmax(axis=1), said, tuple(map(str, range(classes))))), chances


def real(one: Earlier) -> dict[str, float]:
    measured = classification(one.truth, one.answers, CLASSIFICATION, Sampling(0.95))
    return {name: figure.value for name, figure in measured.items() if isinstance(figure, Measure)}


@pytest.mark.parametrize("classes", [2, 3])
def test_of_probabilities_that_mean_what_they_say_every_figure_comes_out_as_expected(classes: int) -> None:
    one, chances = window(0, classes)

    truth = real(one)

    assert expected(one.answers, chances) == pytest.approx(truth, abs=0.02)
    assert len(truth) == len(CLASSIFICATION)


def test_probabilities_that_say_too_much_are_corrected_by_earlier_windows(request) -> None:
    judged, _ = window(0, overconfident=3.0)
    earlier = [window(seed, overconfident=3.0)[0] for seed in (1, 2, 3)]

    alone, checked = estimate(judged.answers, []), estimate(judged.answers, earlier)

    assert isinstance(alone, Estimate)
    assert isinstance(checked, Estimate)
    truth = real(judged)["accuracy"]
    assert alone.values["accuracy"] == pytest.approx(truth + 0.14, abs=0.03)
    assert checked.values["accuracy"] == pytest.approx(truth, abs=0.02)
    assert checked.is_corrected
    assert checked.calibration_error is not None
    assert checked.calibration_error < 0.02
    assert checked.errors["accuracy"] < 0.02


def test_probabilities_that_are_right_are_left_as_they_are() -> None:
    judged, _ = window(0, rows=2_000)
    earlier = [window(seed, rows=300)[0] for seed in (1, 2, 3)]

    found = estimate(judged.answers, earlier)

    assert isinstance(found, Estimate)
    assert not found.is_corrected


def test_fewer_than_three_windows_give_a_figure_that_decides_nothing() -> None:
    judged, _ = window(0, rows=500)

    found = estimate(judged.answers, [window(1, rows=500)[0]])

    assert isinstance(found, Estimate)
    assert found.errors == {}
    assert "1 earlier windows with labels cannot confirm" in str(found.measure("accuracy", 500))


def test_without_probabilities_nothing_is_estimated() -> None:
    silent = Classified(np.zeros(10, np.int64), None, ("a", "b"))

    assert "gives no probability" in str(estimate(silent, []))


def test_figures_that_cannot_be_expected_say_why() -> None:
    answers = Classified(np.zeros(10, np.int64), np.tile([0.9, 0.1], (10, 1)), ("no", "yes"))

    found = expected(answers, np.tile([1.0, 0.0], (10, 1)))

    assert found["precision"] == "no row was called 'yes'"
    assert found["roc_auc"] == "all rows are expected to be of one label"
