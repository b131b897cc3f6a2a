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


def test_a_good_reference_keeps_the_budget(reference):
    assert budget.check_budget(reference, MonitorSpec(), 1.0) == []


def test_a_budget_with_many_open_alarms_is_a_warning(reference):
    (warning,) = budget.check_budget(reference, MonitorSpec(), 16.0)
    assert mentions(warning, "16", "44%", "at most 9.1")
    assert budget.check_budget(reference, MonitorSpec(), 9.1) == []


def test_reference_of_ten_days_is_refused_with_a_remedy():
    with pytest.raises(InvalidConfig) as refusal:
        budget.check_budget(reference_of(10), MonitorSpec(), 1.0)
    assert mentions(refusal.value.message, "false_per_year", "20 windows", "10", "every=12h")


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
def test_a_reference_without_event_times_is_refused_with_the_way_to_set_them(source, remedy):
    timed = reference_of(40)
    untimed = replace(timed, pieces=cut_pieces(timed.bins, timed.sample, None, 0, DAY_US))

    with pytest.raises(InvalidConfig) as refusal:
        budget.check_budget(untimed, MonitorSpec(reference=source), 1.0)

    assert mentions(refusal.value.message, "false_per_year", source, "no event times", remedy)
    assert "longer" not in refusal.value.message


def test_the_proposed_windows_are_enough():
    with pytest.raises(InvalidConfig) as refusal:
        budget.check_budget(reference_of(43, 7 * DAY_US), MonitorSpec(every="7d"), 1.0)
    assert mentions(refusal.value.message, "every=2d")
    assert budget.check_budget(reference_of(43, 2 * DAY_US), MonitorSpec(every="2d"), 1.0)[
        0
    ].startswith("a share")


def test_a_season_longer_than_half_of_the_reference_is_refused(reference):
    with pytest.raises(InvalidConfig) as refusal:
        budget.check_budget(reference, MonitorSpec(season="60d"), 1.0)
    assert mentions(refusal.value.message, "season 60d", "30d")


@pytest.mark.parametrize(
    ("length_us", "windows", "season"),
    [(DAY_US, 90, 7), (DAY_US, 15, 1), (DAY_US // 24, 2000, 168), (7 * DAY_US, 90, 1)],
)
def test_the_cycle_of_a_week_is_removed_if_the_reference_has_three(length_us, windows, season):
    assert budget.season_windows(MonitorSpec(), windows, length_us) == season


@pytest.mark.parametrize("per_year", [2.0, 4.0])
def test_few_windows_are_named_with_the_length_needed(per_year):
    (statement,) = statements(normal_rows(30), per_year)
    assert mentions(statement, "30 windows", "40d", "every=12h")
    assert "smallest" not in statement


def test_the_proposed_budget_can_be_kept():
    steps = np.repeat([0, 0, 0, 0, 0, 9, 0, 9, 0, 9], 30) + normal_rows(300)
    (statement,) = statements(steps)
    proposed = re.search(r"smallest\D*([\d.]+)", statement)
    assert proposed is not None
    assert statements(steps, float(proposed[1])) == []


def test_a_high_correlation_and_a_walk_are_named_with_a_rolling_reference():
    assert any(
        mentions(line, "temp/level", "rolling:7d") for line in statements(correlated(400, 0.97))
    )
    walk = np.cumsum(normal_rows(120, seed=1))
    assert any(mentions(line, "correlation", "rolling:7d") for line in statements(walk))


def test_the_parts_of_a_budget_add_up():
    spec = MonitorSpec(every="1d")
    lasting = budget.LASTING_SHARE / spec.windows_per_year
    assert lasting + budget.single_window_rate(spec, 1.0) == pytest.approx(1 / 365.25)
