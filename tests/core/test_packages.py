"""Tests of the refusal of installed packages that do not fit onnxserve."""

import os
import subprocess
import sys

import pytest

from mlflow_deploy_plugin.core.packages import check_fit
from tests.support.refusals import mentions

IMPORT = ["-c", "from mlflow_deploy_plugin import log_model"]


@pytest.mark.parametrize(
    ("package", "command", "remedy"),
    [
        ("mlflow 2.22.5", ["-m", "mlflow_deploy_plugin.cli", "list"], "'mlflow<4,>=3.17'"),
        ("mlflow_skinny 2.22.5", IMPORT, "'mlflow-skinny<4,>=3.17'"),
        ("numpy 1.26.4", IMPORT, "'numpy>=2'"),
    ],
)
def test_unfit_package_is_refused(package, command, remedy, tmp_path):
    name, version = package.split()
    folder = tmp_path / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    ended = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert mentions(last, package.replace("_", "-"), "pip install")
    assert remedy in last
    assert ("Traceback" in ended.stderr) == (command is IMPORT)


def test_fitting_packages_are_listed():
    assert check_fit("numpy", "not-required")[0].startswith("numpy 2.")
