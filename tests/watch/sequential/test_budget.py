"""What a reference can keep: its number of windows, its season, its correlation, and
its own alarms.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.watch.drift.references.windows import cut_pieces
from mlflow_deploy_plugin.watch.sequential import budget
from mlflow_deploy_plugin.watch.sequential.levels import FigureSeries, ReferenceLevels
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions, refused
from tests.watch.sequential.conftest import DAY_US, reference_of


def levels(values, length_us=DAY_US):
    return ReferenceLevels(
        starts_us=np.arange(len(values)) * length_us,
        length_us=length_us,
        series=(FigureSeries("", "temp", "level"),),
        values=values[:, None],
        rows=np.full((len(values), 1), 80.0),
        row_variances=np.zeros(1),
        floors=np.array([1e-3]),
    )


def statements(values, per_year=1.0, **spec):
    return [*budget.unkept(levels(values), MonitorSpec(**spec), per_year)]


def correlated(windows, correlation):
    rng = np.random.default_rng(0)
    values = np.zeros(windows)
    for day in range(1, windows):
        values[day] = correlation * values[day - 1] + rng.normal()
    return values


def test_large_budget_is_a_warning(reference):
    (warning,) = budget.check_budget(reference, MonitorSpec(), 16.0)
    assert mentions(warning, "16", "44%", "at most 9.1")
    assert budget.check_budget(reference, MonitorSpec(), 9.1) == []


def test_reference_of_ten_days_is_refused():
    with refused(InvalidConfig, "false_per_year", "20 windows", "10", "every=12h"):
        budget.check_budget(reference_of(10), MonitorSpec(), 1.0)


def test_refusal_names_the_judged_length(reference):
    births = np.repeat(np.arange(61) * DAY_US, 15)
    rows = reference.sample.slice(0, len(births))
    pieces = cut_pieces(reference.bins, rows, births, 0, 9 * DAY_US)

    with refused(InvalidConfig, "20 windows of 9d", "has 7", "180d", "judge windows of 2d"):
        budget.check_budget(replace(reference, pieces=pieces), MonitorSpec(every="1d"), 1.0)


def test_windows_of_two_rows_are_refused(reference):
    births = np.repeat(np.arange(500) * DAY_US, 2)
    rows = reference.sample.slice(0, len(births))
    pieces = cut_pieces(reference.bins, rows, births, 0, DAY_US)

    with refused(InvalidConfig, "500 windows", "median of 2"):
        budget.check_budget(replace(reference, pieces=pieces), MonitorSpec(), 1.0)


@pytest.mark.parametrize(
    ("source", "remedy"),
    [("training", "event_time="), ("dataset:rows.csv", "the column _event_time")],
)
def test_reference_without_event_times_is_refused(source, remedy):
    timed = reference_of(40)
    untimed = replace(timed, pieces=cut_pieces(timed.bins, timed.sample, None, 0, DAY_US))

    with refused(InvalidConfig, "false_per_year", source, "no event times", remedy):
        budget.check_budget(untimed, MonitorSpec(reference=source), 1.0)


def test_too_long_season_is_refused(reference):
    with refused(InvalidConfig, "season 60d", "30d"):
        budget.check_budget(reference, MonitorSpec(season="60d"), 1.0)


@pytest.mark.parametrize(
    ("length_us", "windows", "season"),
    [(DAY_US, 90, 7), (DAY_US, 15, 1), (DAY_US // 24, 2000, 168), (7 * DAY_US, 90, 1)],
)
def test_weekly_season_needs_three_weeks(length_us, windows, season):
    assert budget.season_windows(MonitorSpec(), windows, length_us) == season


@pytest.mark.parametrize("per_year", [2.0, 4.0])
def test_few_windows_state_the_needed_length(per_year):
    (statement,) = statements(normal_rows(30), per_year)
    assert mentions(statement, "30 windows", "40d", "every=12h")
    assert "smallest" not in statement


def test_proposed_budget_can_be_kept():
    steps = np.repeat([0, 0, 0, 0, 0, 9, 0, 9, 0, 9], 30) + normal_rows(300)
    (statement,) = statements(steps)
    proposed = re.search(r"smallest\D*([\d.]+)", statement)
    assert proposed is not None
    assert statements(steps, float(proposed[1])) == []


def test_correlated_levels_suggest_a_rolling_reference():
    assert any(
        mentions(line, "temp/level", "rolling:7d") for line in statements(correlated(400, 0.97))
    )
    walk = np.cumsum(normal_rows(120, seed=1))
    assert any(mentions(line, "correlation", "rolling:7d") for line in statements(walk))


def test_parts_of_a_budget_add_up():
    spec = MonitorSpec(every="1d")
    lasting = budget.LASTING_SHARE / spec.windows_per_year
    assert lasting + budget.single_window_rate(spec, 1.0) == pytest.approx(1 / 365.25)


USUAL = np.full((400, 1), 100.0)


def deviation_at(rows, between):
    """Return the relative deviation of a figure of windows with these rows; its rows
    have a variance of 1, and it varies by `between` from window to window.
    """
    rng = np.random.default_rng(0)
    residuals = rng.normal(0, np.sqrt(between**2 + 1 / 100), (400, 1))
    (relative,) = budget.relative_deviations(residuals, np.array([[rows]]), np.ones(1), USUAL)
    return float(relative[0])


@pytest.mark.parametrize(
    ("rows", "between", "expected"),
    [(100, 0.0, 1.0), (25, 0.0, 2.0), (400, 0.0, 0.5), (25, 10.0, 1.0), (25, 0.1, np.sqrt(2.5))],
)
def test_deviation_follows_the_row_count(rows, between, expected):
    assert deviation_at(rows, between) == pytest.approx(expected, rel=0.1)


def test_unknown_row_count_is_usual():
    assert deviation_at(np.nan, 0.1) == 1.0


def test_window_without_rows_keeps_the_variance():
    residuals = np.random.default_rng(0).normal(0, 1, (400, 1))
    of_reference = USUAL / 100
    of_reference[:100] = 0

    (relative,) = budget.relative_deviations(
        residuals, np.array([[25.0]]), np.ones(1), of_reference
    )

    assert np.square(relative) == pytest.approx((0.25 + 1 / 25) / 1.25, rel=0.2)


def distance_factor(distances, rows):
    (factor,) = budget.sampling_factor(distances, np.array([rows]), 1.0, USUAL[:, 0])
    return float(factor)


def test_sampling_distance_shrinks_with_rows():
    assert distance_factor(np.full(400, 0.1), 25) == pytest.approx(2.0, rel=0.01)
    assert distance_factor(np.full(400, 3.0), 25) == pytest.approx(1.0, abs=0.01)
    assert distance_factor(np.full(400, 0.1), np.nan) == 1.0


def test_distance_has_the_minimum_of_the_reference():
    of_reference = USUAL[:8, 0]

    (factor,) = budget.sampling_factor(np.full(8, 0.1), np.array([1e6]), 1.0, of_reference)

    assert factor == pytest.approx(np.sqrt(1 / 9), rel=0.01)
