"""The null distribution of independent rows: rows are subsampled fairly, and a
reference whose own windows contradict independent rows is refused.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.drifting.judging import Judge
from benchmarks.drifting.worlds import (
    DAY_US,
    HOUR_US,
    Rows,
    dependent_days,
    independent_rows,
    reference_of,
    rolling_reference_of,
)
from mlflow_deploy_plugin.watch.drift.samples import needed_windows, out_of_reference, subsample
from mlflow_deploy_plugin.watch.drift.sketches.bins import freeze_bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.drift.sketches.sketch import encode_columns
from mlflow_deploy_plugin.watch.drift.verdict import DriftVerdict
from tests.support.refusals import mentions

ROWS = 60
DAYS = 90


def test_thinning_keeps_shares_and_takes_no_row_twice() -> None:
    rng = np.random.default_rng(0)
    counts = np.array(
        [
            [600, 300, 0, 100],
            [2, 1, 0, 0],
            [0, 0, 0, 0],
            [50, 50, 50, 50],
        ]
    )

    thinned = np.stack([subsample(counts, 100, rng) for _ in range(400)])

    assert (thinned.sum(axis=2) == np.minimum(counts.sum(axis=1), 100)).all()
    assert (thinned <= counts).all()
    assert thinned[:, 0].mean(axis=0) == pytest.approx([60, 30, 0, 10], abs=1)
    # the hypergeometric, not the binomial distribution
    assert thinned[:, 3, 0].var() == pytest.approx(100 * 0.25 * 0.75 * 100 / 199, rel=0.3)


def test_bins_count_values_outside_of_the_reference() -> None:
    numbers = freeze_bins(ColumnValues("n", "number", np.arange(100.0)))
    counts, reference_counts = (
        np.bincount(
            encode_columns(
                {"n": numbers},
                pa.table({"n": values}),
            )["n"],
            minlength=numbers.size + 1,
        )[None]
        for values in ([-50.0, 10.0, 20.0, 300.0], np.arange(5.0, 90.0))
    )

    assert out_of_reference(numbers, counts, reference_counts).outside.tolist() == [2]

    texts = freeze_bins(
        ColumnValues(
            "t",
            "category",
            np.array(["a", "b", "c"], dtype=object),
        )
    )
    assert out_of_reference(
        texts,
        np.array([[3.0, 1, 2, 0, 0]]),
        np.array([[5.0, 0, 1, 0, 0]]),
    ).unseen.tolist() == [1]
    assert np.isnan(
        out_of_reference(
            texts, np.array([[3.0, 1, 2, 0, 0]]), np.array([[5.0, 0, 1, 4, 0]])
        ).unseen,
    ).all()


def verdict_on_next_day(
    world: Callable[..., Any],
    seed: int,
    days: int = DAYS,
    lag: int = 0,
    **spec: Any,
) -> DriftVerdict:
    """Judge the day after the reference, which follows the same distribution."""
    rows = world(
        np.random.default_rng([seed, 5]),
        days + 1,
        ROWS,
    )
    past = rows.between(0, days * DAY_US)
    start = days * DAY_US
    judge = Judge(
        rolling_reference_of(past, start, DAY_US, lag)
        if lag
        else reference_of(past, start, DAY_US),
        **spec,
    )
    return judge(rows.between(start, start + DAY_US).table, start)


def rows_that_depend(rng: Any, days: int, rows: int) -> Any:
    return dependent_days(rng, (0.3, 0.0), days, rows)


def rows_apart(rng: Any, days: int, rows: int) -> Any:
    times = np.repeat(np.arange(days) * DAY_US, rows) + rng.integers(0, DAY_US, days * rows)
    return Rows(independent_rows(rng, days * rows), times)


@pytest.mark.parametrize("lag", [0, 7])
def test_independent_rows_are_refused_where_the_references_own_windows_contradict_them(
    lag: int,
) -> None:
    for seed in range(3):
        verdict = verdict_on_next_day(
            rows_that_depend,
            seed,
            days=40,
            lag=lag,
            independent_rows=True,
        )

        assert verdict.state == "not judged"
        assert verdict.figures.get("p_value") is None
        assert re.match(
            r"the reference contradicts independent_rows: its own \d+ windows vary more than "
            r"windows of independent rows; for windows of 60 rows the variance is larger by these "
            r"factors: x\d [\d.]+, x\d [\d.]+; windows without drift would be called drifted; "
            r"set independent_rows: false to compare",
            verdict.reason,
        )


def test_a_column_that_is_gone_is_drift_also_where_independent_rows_are_refused() -> None:
    rows = rows_that_depend(np.random.default_rng(1), 41, ROWS)
    judge = Judge(
        reference_of(rows.between(0, 40 * DAY_US), 40 * DAY_US, DAY_US),
        independent_rows=True,
    )

    verdict = judge(
        rows.between(40 * DAY_US, 41 * DAY_US).table.drop_columns(["x1"]),
        40 * DAY_US,
    )

    assert verdict.state == "drift"
    assert mentions(verdict.reason, "x1", "not in the window", "distributions are not judged")


def test_sparse_reference_reveals_that_rows_are_not_independent() -> None:
    """With two rows per hour no window could be judged; the windows are alike."""
    rng = np.random.default_rng(2)
    hours = 40 * 24
    rows = dependent_days(rng, (0.3, 0.0), 41, 48)
    judge = Judge(
        reference_of(rows.between(0, 40 * DAY_US), hours * HOUR_US, HOUR_US),
        independent_rows=True,
    )
    calm = rows.between(40 * DAY_US, 41 * DAY_US).table

    verdict = judge(calm, hours * HOUR_US)

    assert verdict.state == "not judged"
    assert verdict.reason[:43] == "the reference contradicts independent_rows:"


@pytest.mark.parametrize(
    ("rate", "windows"),
    [
        (0.05, 19),
        (0.01, 99),
        (0.1, 9),
        (0.07, 14),
        (0.5, 1),
    ],
)
def test_a_rate_needs_so_many_windows(rate: float, windows: int) -> None:
    assert needed_windows(rate) == windows
    assert 1 / (windows + 1) <= rate
