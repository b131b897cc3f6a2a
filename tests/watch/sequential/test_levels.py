"""The signed figures of windows and of references."""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.watch.sequential.levels import (
    FigureSeries,
    reference_levels,
    window_levels,
)
from tests.watch.sequential.conftest import DAY_US, REFERENCE_DAYS, ROWS, reference_of, rows_of


def test_figures_describe_level_spread_missing_and_frequent_values(
    reference: DriftReference,
) -> None:
    rows = rows_of(500)
    window = sketch_batches(reference.bins, [pa.table(rows)])
    figures = {
        str(series): value
        for series, value in window_levels(reference, window, [*rows], "").items()
    }
    assert figures["temp/level"] == pytest.approx(rows["temp"].mean(), abs=0.05)
    assert figures["temp/spread"] == pytest.approx(np.log(rows["temp"].std()), abs=0.05)
    assert figures["delay/missing"] == np.isnan(rows["delay"]).mean()
    assert figures["carrier/frequent"] == (rows["carrier"] == "UA").mean()
    assert "carrier/level" not in figures
    assert figures["temp/mean"] == pytest.approx(rows["temp"].mean())
    assert figures["temp/outside"] == 0
    assert figures["carrier/new"] == 0
    assert figures["carrier/second"] < figures["carrier/frequent"]
    assert figures["temp/distance"] > 0
    assert figures["number of rows/rows"] == pytest.approx(np.log(ROWS))


def test_the_reference_has_a_figure_per_window(reference: DriftReference) -> None:
    levels = reference_levels(reference, ["temp"], {"carrier=UA": reference})
    assert len(levels.starts_us) == REFERENCE_DAYS
    assert {series.key for series in levels.series} == {"temp", "carrier=UA/temp"}
    of_temp = levels.values[:, levels.series.index(FigureSeries("", "temp", "level"))]
    assert of_temp.std() == pytest.approx(0.5, abs=0.15)


def test_all_hours_of_a_long_reference_are_known() -> None:
    hourly = reference_of(30, DAY_US // 24)
    assert len(hourly.pieces.windows) == 500
    assert len(reference_levels(hourly, ["temp"], {}).starts_us) == 30 * 24
