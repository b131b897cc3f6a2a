"""What a body may unpack to is bounded: the memory that a process of its own takes to read each bomb."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.corpus.bombs import BOMBS

ROOT = Path(__file__).parents[3]
TAKEN = {"Parquet: run lengths that are just taken", "JSON: numbers", "CSV: fields"}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_more_memory_than_it_may(tmp_path: Path, name: str) -> None:
    packed = tmp_path / "bomb.gz"
    packed.write_bytes(gzip.compress(BOMBS[name].body(), 1))
    command = [sys.executable, "-m", "tests.server.corpus.bombs", str(packed), name]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout)
    assert told["mib"] < BOMBS[name].most_mib, told
    assert told["message"].startswith(("400 ", "413 ")) or (name in TAKEN and not told["message"]), told
