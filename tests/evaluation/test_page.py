"""The guide does what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.guides import run_page


@pytest.mark.long
def test_the_page_of_robustness_runs_as_it_stands(tmp_path: Path, new_database: Callable[[Path], str]) -> None:
    _, measured = run_page("robustness.md", tmp_path, new_database(tmp_path))
    lines = [line.split() for line in measured.splitlines()]
    assert ["noise", "1", "0.9711", "+0.0228"] in lines
    assert ["scale", "10", "0.6900", "+0.3039", "mean", "symmetry"] in lines
    assert "logged to run " in measured
