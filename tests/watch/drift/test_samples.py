"""The null distribution of independent rows: rows are subsampled fairly."""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.drift.samples import needed_windows, out_of_reference, subsample
from mlflow_deploy_plugin.watch.drift.sketches.bins import freeze_bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.drift.sketches.sketch import encode_columns


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
