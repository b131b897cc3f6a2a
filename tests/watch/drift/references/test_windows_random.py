"""A reference of independent rows gets windows of random rows."""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.drift.references.windows import RANDOM_WINDOWS, with_random_windows
from tests.watch.drift.test_verdict import reference_of


def independent_reference(rows):
    table = pa.table(
        {"number": np.arange(float(rows)), "name": [f"id-{row}" for row in range(rows)]}
    )
    return reference_of(table, None)


@pytest.mark.parametrize(
    ("reference_rows", "rows", "window_rows"),
    [
        (9_000, 50, 50),
        # A window has at most an eighth of the rows.
        (400, 50, 50),
        (400, 300, 50),
        (30, 300, 3),
    ],
)
def test_windows_have_as_many_rows_as_the_judged_window_if_possible(
    reference_rows, rows, window_rows
):
    reference = independent_reference(reference_rows)

    pieces = with_random_windows(reference, rows).pieces

    assert len(pieces.windows) == len(set(pieces.window_starts_us)) == RANDOM_WINDOWS
    assert min(window.rows for window in pieces.windows) == window_rows
    assert pieces.total is reference.pieces.total


def test_values_are_new_if_no_other_row_of_the_reference_has_them():
    windows = with_random_windows(independent_reference(800), 100).pieces.windows

    assert [window.columns["name"].unseen for window in windows] == [100] * RANDOM_WINDOWS
    # The smallest and the largest number are in one window each of every division.
    outside = [
        window.columns["number"].below + window.columns["number"].above for window in windows
    ]
    assert 0 < np.count_nonzero(outside) < RANDOM_WINDOWS / 2


def test_a_reference_always_gets_the_same_windows():
    first, second = (with_random_windows(independent_reference(800), 100) for _ in range(2))

    means = [
        [window.columns["number"].mean for window in reference.pieces.windows]
        for reference in (first, second)
    ]
    assert means[0] == means[1]
