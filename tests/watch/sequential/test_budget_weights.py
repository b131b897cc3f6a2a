"""What the number of rows of a window implies for its figures."""

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.sequential.budget import relative_deviations, sampling_factor

USUAL = np.full((400, 1), 100.0)


def deviation_at(rows, between):
    """Return the relative deviation of a figure of windows with these rows; its rows
    have a variance of 1, and it varies by `between` from window to window.
    """
    rng = np.random.default_rng(0)
    residuals = rng.normal(0, np.sqrt(between**2 + 1 / 100), (400, 1))
    (relative,) = relative_deviations(residuals, np.array([[rows]]), np.ones(1), USUAL)
    return float(relative[0])


@pytest.mark.parametrize(
    ("rows", "between", "expected"),
    [(100, 0.0, 1.0), (25, 0.0, 2.0), (400, 0.0, 0.5), (25, 10.0, 1.0), (25, 0.1, np.sqrt(2.5))],
)
def test_few_rows_count_only_as_far_as_the_figure_depends_on_them(rows, between, expected):
    assert deviation_at(rows, between) == pytest.approx(expected, rel=0.1)


def test_an_unknown_number_of_rows_is_usual():
    assert deviation_at(np.nan, 0.1) == 1.0


def test_a_window_without_rows_does_not_hide_the_variance_between_windows():
    residuals = np.random.default_rng(0).normal(0, 1, (400, 1))
    of_reference = USUAL / 100
    of_reference[:100] = 0

    (relative,) = relative_deviations(residuals, np.array([[25.0]]), np.ones(1), of_reference)

    assert np.square(relative) == pytest.approx((0.25 + 1 / 25) / 1.25, rel=0.2)


def distance_factor(distances, rows):
    (factor,) = sampling_factor(distances, np.array([rows]), 1.0, USUAL[:, 0])
    return float(factor)


def test_distances_that_are_due_to_sampling_shrink_with_the_rows():
    assert distance_factor(np.full(400, 0.1), 25) == pytest.approx(2.0, rel=0.01)
    assert distance_factor(np.full(400, 3.0), 25) == pytest.approx(1.0, abs=0.01)
    assert distance_factor(np.full(400, 0.1), np.nan) == 1.0


def test_the_distance_of_many_rows_is_at_least_that_of_the_reference():
    of_reference = USUAL[:8, 0]

    (factor,) = sampling_factor(np.full(8, 0.1), np.array([1e6]), 1.0, of_reference)

    assert factor == pytest.approx(np.sqrt(1 / 9), rel=0.01)
