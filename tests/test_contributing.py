"""The examples of CONTRIBUTING.md are tests that pass."""

import os
import subprocess
import sys

import pytest

from tests.support.guides import ROOT, blocks


@pytest.mark.long
def test_examples_pass(tmp_path):
    for number, example in enumerate(blocks("py", (ROOT / "CONTRIBUTING.md").read_text())):
        (tmp_path / f"test_{number}.py").write_text(example)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "6 passed" in run.stdout, run.stdout
