"""A page of the guides as a script: its blocks are taken out and run in their order, as a reader does."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.readme import ROOT

_TIMEOUT_SECONDS = 300


def run_page(name: str, folder: Path, tracking_uri: str) -> list[str]:
    """What each `sh` and `python` block of docs/NAME prints to stdout; each has to end with status 0.

    Args:
        folder: where they run; deployments are in the home that this process's environment names.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "PIP_NO_INDEX": "1",  # what a page installs is here already
    }
    page = (ROOT / "docs" / name).read_text()
    printed = []
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        ran = subprocess.run(
            command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
        printed.append(ran.stdout)
    return printed
