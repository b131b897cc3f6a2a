"""Test of README's example in the environment of the tests; test_install.py runs it in
empty environments.
"""

import sys
from pathlib import Path

import pytest

from tests.support.guides import run_smallest_example


@pytest.mark.long
def test_readme_example_prints_shown_lines(tmp_path):
    run_smallest_example(Path(sys.prefix), tmp_path)
