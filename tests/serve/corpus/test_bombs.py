"""The memory that a body takes is bounded. Each bomb is read in a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.serve.corpus.bombs import BOMBS

ROOT = Path(__file__).parents[3]
TAKEN = {"JSON: numbers", "CSV: fields"}
"""The bombs that a model accepts; all other bombs are refused."""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["Arrow", "JSON", "JSON Lines", "CSV", "gRPC"])
def test_memory_of_bomb_is_bounded(tmp_path, kind):
    names = [name for name in BOMBS if name.startswith(kind + ":")]
    packed = {name: str(tmp_path / str(number)) for number, name in enumerate(names)}
    for name, path in packed.items():
        Path(path).write_bytes(zstandard.compress(BOMBS[name].body(), 1))
    command = [sys.executable, "-m", "tests.serve.corpus.bombs", json.dumps(packed)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, timeout=300, check=True
    )
    reports = {line["name"]: line for line in map(json.loads, ran.stdout.splitlines())}
    # A missing name means that the bomb has crashed the process.
    assert list(reports) == names, ran.stderr[-2000:]
    assert {
        name: line for name, line in reports.items() if line["mib"] >= BOMBS[name].most_mib
    } == {}
    refused = {
        name for name, line in reports.items() if line["message"].startswith(("400 ", "413 "))
    }
    assert set(names) - refused == TAKEN & set(names), reports
