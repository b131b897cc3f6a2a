"""The words for changed values: rounding, freezing, units, constants and repeated
rows.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.drift.value_changes import describe_repeats, describe_values

RNG = np.random.default_rng(0)
TEMPERATURE = RNG.normal(12, 6, 5_000)
TODAY = RNG.normal(12.5, 6, 300)
PLANS = RNG.choice(["free", "plus", "pro"], 5_000, p=[0.3, 0.6, 0.1])
COUNTS = RNG.poisson(3, 5_000).astype(float)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (TEMPERATURE, TODAY, ""),
        (TEMPERATURE, np.rint(TODAY), "rounded to integers"),
        (TEMPERATURE, TODAY.astype(np.float32).round(1), "rounded to multiples of 0.1"),
        (COUNTS, RNG.poisson(9, 300), ""),
        (
            TEMPERATURE,
            np.where(np.arange(300) % 4, TODAY, 21.37),
            "frozen at 21.37 in 25% of the rows",
        ),
        (
            np.where(np.arange(5_000) % 5 < 2, 0.0, TEMPERATURE),
            np.where(np.arange(300) % 4 == 1, 21.37, np.where(np.arange(300) % 5 < 2, 0.0, TODAY)),
            "frozen at 21.37 in 25% of the rows",
        ),
        (
            np.where(np.arange(5_000) % 5 < 1, 0.0, TEMPERATURE),
            np.where(np.arange(300) % 5 < 3, 0.0, TODAY),
            "0 20.0% → 60.0%, more often",
        ),
        (np.full(5_000, 4.0), COUNTS[:300], "constant 4.0 until now, varies since"),
        (TEMPERATURE, TODAY * 1.8 + 32, "each value × 1.8 + 32"),
        (TEMPERATURE * 1.8 + 32, TODAY, "each value ÷ 1.8 - 17.78"),
        (TEMPERATURE, TODAY + 273.15, "each value + 273.15"),
        (np.exp(TEMPERATURE / 6), np.exp(TODAY / 6) * 100, "each value × 100"),
        (PLANS, RNG.choice(PLANS, 300), ""),
        (
            PLANS,
            np.repeat(["free", "plus", "pro", None], [60, 150, 80, 10]),
            "'pro' 9.8% → 27.6%, more often",
        ),
        (PLANS, np.full(300, "plus"), ""),
        (
            (PLANS == "pro").astype(float),
            1.0 * (np.arange(300) % 4 == 0),
            "1 9.8% → 25.0%, more often",
        ),
        (TEMPERATURE, PLANS, ""),
        (TEMPERATURE, [], ""),
        (TEMPERATURE, [np.inf, -np.inf, np.nan, 1e308] * 50, ""),
        (["x" * 10_000], PLANS, f"constant {'x' * 80} until now, varies since"),
    ],
)
def test_values_that_are_rounded_or_otherwise_changed_are_described(before, now, words):
    columns = [
        ColumnValues("x", "category" if values.dtype.kind in "UO" else "number", values)
        for values in map(np.array, (before, now))
    ]
    assert describe_values(*columns) == words


def test_repeated_rows_are_described():
    def columns(places):
        return {
            "temp": ColumnValues("temp", "number", np.where(places, TEMPERATURE[places], np.nan)),
            "plan": ColumnValues("plan", "category", PLANS[places]),
        }

    before = columns(np.arange(5_000))
    now = columns(np.arange(300) % 240)
    plans = {"plan": before["plan"]}

    assert describe_repeats(before, before) == describe_repeats(plans, plans) == ""
    assert describe_repeats(before, now) == "25% of the rows twice or more"
