"""Test that `make demo DEMO_EXIT=1` runs the complete loop on real data and leaves no
running process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


# The test takes minutes; test_install.py tests its steps: a training, a deployment, a
# day and its verdict.
@pytest.mark.long
@pytest.mark.timeout(900)
def test_demo_completes_and_leaves_no_process(tmp_path):
    home = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "projects.demo", "--home", str(home)],
        cwd=ROOT,
        env=os.environ | {"DEMO_EXIT": "1"},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = done.stdout.rpartition("[9/9]")[2]
    assert drifted_of_ten(table, "Calm") <= 2
    assert drifted_of_ten(table, "Summer") >= 8
    assert re.search(r"Parity +proven on [1-9],\d{3} rows", table)
    assert re.search(r"Promotion +version 2 was served \d+\.\d s", table)
    assert re.search(
        r"Agreement +(\d+) of \1 predictions are equal to mlflow.pyfunc.load_model\n", table
    )
    for kind in ("calm", "summer"):
        assert "<html" in (home / "reports" / f"{kind}.html").read_text()[:2000]
    assert processes_of(home) == []


def drifted_of_ten(table, kind):
    match = re.search(rf"{kind} days judged as drift +(\d+) of 10\n", table)
    assert match is not None, table
    return int(match.group(1))


def processes_of(home):
    """Return the command lines of the processes that refer to the folder."""
    command_lines = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(home) in text for text in texts):
            command_lines.append(" ".join(process.cmdline()))
    return command_lines
