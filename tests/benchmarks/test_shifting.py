"""The metrics of annotated series, the methods next to ours, the cells of estimates,
and public files.
"""

import numpy as np
import pandas as pd
import pytest

from benchmarks.shifting import data
from benchmarks.shifting.estimates import cut_windows, score
from benchmarks.shifting.series import (
    Series,
    agreed_changes,
    covering,
    f1_score,
    find_by_bocpd,
    find_by_cusum,
)


@pytest.mark.parametrize(
    ("marks", "starts", "expected"),
    [
        ([[], [28], [], [28], [28]], [], 0.8235294),  # Nile, as TCPDBench has it for no change
        ([[50], [50]], [53], 1.0),
        ([[50], [50]], [56], 0.5),  # 56 is too far, and the first value matches
        ([[50, 52]], [51], 0.8),  # a start matches one mark: precision 1, recall 2/3
        ([[], []], [], 1.0),
    ],
)
def test_f1_is_that_of_the_data_set(marks, starts, expected):
    assert f1_score(marks, starts, 0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("marks", "starts", "expected"),
    [
        ([[60]], [60], 1.0),
        ([[]], [60], 0.5),  # the larger half covers 40 of 80 windows
        ([[60], []], [], (0.5 + 1) / 2),
        ([[40]], [60], (20 / 80) * (20 / 40) + (60 / 80) * (40 / 60)),
    ],
)
def test_covering_is_weighted_by_length(marks, starts, expected):
    assert covering(marks, starts, 20, 100) == pytest.approx(expected)


def test_changes_need_three_annotators():
    marks = [[50, 90], [52, 91], [54], [120], [300, 92]]
    assert agreed_changes(marks) == [52, 91]


@pytest.mark.parametrize("find", [find_by_cusum, find_by_bocpd])
def test_public_method_dates_a_step(find):
    values = np.random.default_rng(0).normal(size=150)
    values[100:] += 4
    (found,) = find(Series("step", values, 50, [[100]]))
    assert found.start == 100
    assert 100 <= found.found <= 104


def test_cell_has_error_bias_coverage_and_width():
    estimates = np.array([[0.8, 0.7, 0.9], [0.6, 0.5, 0.7], [0.5, 0.4, 0.6]])
    truth = np.array([0.9, 0.9, np.nan])
    assert score(estimates, truth) == "0.2000; -0.2000; 50% of 0.200"


def test_windows_are_whole():
    windows = cut_windows(pd.DataFrame({"truth": range(7)}), 3)
    assert [[*window["truth"]] for window in windows] == [[0, 1, 2], [3, 4, 5]]


def test_missing_public_file_has_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_FOLDER", tmp_path / "cache")
    monkeypatch.setenv("PUBLIC_DATA_CLONES", str(tmp_path))
    with pytest.raises(data.NotHad, match="clone alan-turing-institute/TCPD to"):
        data.public_file("annotations")
