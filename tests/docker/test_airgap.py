"""The commands of docs/airgap.md, in a network that swallows every packet (`make
test-airgap`).
"""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.support.black_hole import isolated
from tests.support.guides import ROOT, blocks, shell

pytestmark = [
    pytest.mark.long,
    pytest.mark.release,
    pytest.mark.docker,
    pytest.mark.timeout(1800),
]

PAGE = (ROOT / "docs" / "airgap.md").read_text()
TEN_COMMANDS = (ROOT / "docs" / "ten-commands.md").read_text()
CONNECTED, INSTALL, PYFUNC, IMAGE = blocks("sh", PAGE)
SECONDS = 180
"""The limit for one command. On two busy cores, the longest took 53 s."""
TRACED = """
exec 9> trace
BASH_XTRACEFD=9 PS4='+$EPOCHREALTIME '
set -xeuo pipefail
"""
OF_OTHERS = ("PIP_", "UV_", "MLFLOW_", "DO_NOT_TRACK")


@pytest.fixture
def wheels(checkout, docker):
    """Return the folder that the first block fills with the network."""
    subprocess.run(
        ["bash", "-euc", CONNECTED],
        check=True, cwd=checkout, env=shell(Path(sys.prefix), checkout),
    )  # fmt: skip
    yield checkout / "wheels"
    for name in ("onnxserve:cpu", "cancer:1"):
        docker("rmi", "-f", f"registry.example/{name}", check=False)


def test_page_runs_without_network_and_without_waiting(wheels, tmp_path):
    hole = isolated(tmp_path / "packets")
    if hole is None:
        pytest.skip("this machine does not permit a network namespace with a tunnel")
    (tmp_path / "wheels").symlink_to(wheels)
    (tmp_path / "page.sh").write_text("".join([TRACED, INSTALL, _ten_commands(), PYFUNC, IMAGE]))
    ran = subprocess.run(
        [*hole, "bash", "page.sh"],
        cwd=tmp_path, env=_environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "packets").read_text() == ""
    assert _slower_than(SECONDS, (tmp_path / "trace").read_text()) == {}
    assert "no drift" in ran.stdout
    assert '{"predictions": [[6.0]]}' in ran.stdout
    documents = [*yaml.safe_load_all((tmp_path / "cancer.yaml").read_text())]
    (pod,) = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment"]
    assert {one["image"] for one in pod["containers"]} == {"registry.example/cancer:1"}
    assert pod["imagePullSecrets"] == [{"name": "regcred"}]


def _ten_commands():
    """Return the page's blocks up to its alert, whose controller waits for a window."""
    walked = TEN_COMMANDS.partition("## The alert")[0]
    (notebook,) = blocks("python", walked)
    return "".join([f"python - <<'EOF'\n{notebook}EOF\n", *blocks("sh", walked)])


def _environment(folder):
    """Return the variables of a user who has not set up packages or telemetry, and
    whose Python is the one of this environment.
    """
    variables = shell(folder, folder)
    kept = {name: value for name, value in variables.items() if not name.startswith(OF_OTHERS)}
    return {**kept, "HOME": str(folder), "PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}"}


def _slower_than(seconds, trace):
    """Return the duration of each slower command in the trace of bash."""
    commands = re.findall(r"^\++([\d.]+) (.*)$", trace, re.MULTILINE)
    return {
        command: float(end) - float(begin)
        for (begin, command), (end, _) in pairwise(commands)
        if float(end) - float(begin) > seconds
    }
