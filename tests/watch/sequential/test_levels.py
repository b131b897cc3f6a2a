"""The signed figures of windows and of references."""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.watch.sequential.evidence import SeriesKey
from mlflow_deploy_plugin.watch.sequential.levels import (
    FigureSeries,
    reference_levels,
    window_levels,
)
from tests.watch.drift.test_verdict import reference_of as verdict_reference
from tests.watch.sequential.conftest import DAY_US, REFERENCE_DAYS, ROWS, reference_of, rows_of


def test_figures_describe_the_rows(reference):
    rows = rows_of(500)
    window = sketch_batches(reference.bins, [pa.table(rows)])
    series = window_levels(reference, window, [*rows], "")
    figures = {str(key): value for key, value in series.items()}

    expected = {
        "temp/level": rows["temp"].mean(),
        "temp/spread": np.log(rows["temp"].std()),
        "delay/missing": np.isnan(rows["delay"]).mean(),
        "carrier/frequent": (rows["carrier"] == "UA").mean(),
        "temp/mean": rows["temp"].mean(),
        "temp/outside": 0,
        "carrier/new": 0,
        "number of rows/rows": np.log(ROWS),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=0.05)
    assert "carrier/level" not in figures
    assert figures["carrier/second"] < figures["carrier/frequent"]
    assert figures["temp/distance"] > 0


def test_square_of_a_huge_mean_is_finite(reference):
    rows = rows_of(500)
    rows["temp"][0] = 1.7e308
    window = sketch_batches(reference.bins, [pa.table(rows)])

    mean = window_levels(reference, window, ["temp"], "")[SeriesKey("temp", "mean")]

    assert 1e6 < mean < 1e12


def test_reference_has_a_figure_per_window(reference):
    levels = reference_levels(reference, ["temp"], {"carrier=UA": reference})
    assert len(levels.starts_us) == REFERENCE_DAYS
    assert {series.key for series in levels.series} == {"temp", "carrier=UA/temp"}
    of_temp = levels.values[:, levels.series.index(FigureSeries("", "temp", "level"))]
    assert of_temp.std() == pytest.approx(0.5, abs=0.15)


def test_each_hour_is_compared_with_the_others():
    levels = reference_levels(reference_of(30, DAY_US // 24), ["temp"], {})

    assert len(levels.starts_us) == 30 * 24
    outside = levels.values[:, levels.series.index(FigureSeries("", "temp", "outside"))]
    assert (outside > 0).sum() == 2  # the hours of the minimum and the maximum


@pytest.mark.parametrize(("outlier", "expected"), [(0.0, 0.5), (20.0, 20.0)])
def test_heavy_tails_add_variance_to_the_spread(outlier, expected):
    rng = np.random.default_rng(0)
    size = 40 * 100
    rows = rng.normal(size=size) + outlier * (rng.random(size) < 0.01)
    table = pa.table({"x": rows})
    reference = verdict_reference(table, np.repeat(np.arange(40) * DAY_US, 100))
    levels = reference_levels(reference, ["x"], {})

    variance = levels.row_variances[levels.series.index(FigureSeries("", "x", "spread"))]

    assert variance == pytest.approx(expected, rel=0.3)
