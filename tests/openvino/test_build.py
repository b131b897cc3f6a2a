"""Installs ONNX Runtime's OpenVINO build into a folder, and runs the tests of this
folder in a process that uses it.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "onnxruntime-openvino==1.24.1"
TESTS = (
    "tests/openvino/test_openvino.py",
    "tests/serve/runtime/test_session.py::test_weights_outside_of_the_folder_are_refused",
)


def installed_build():
    """Return the folder of the build, which all runs of this machine share. Skip the
    test if PyPI cannot be reached.
    """
    folder = (
        Path(tempfile.gettempdir())
        / f"{BUILD}-python{sys.version_info.major}.{sys.version_info.minor}"
    )
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                command = [
                    sys.executable,
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--no-deps",
                    "--target",
                    f"{temporary}/site",
                    BUILD,
                ]
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=240, check=False
                )
                if done.returncode:
                    pytest.skip(
                        f"{BUILD} cannot be installed: {done.stderr.strip().splitlines()[-1]}"
                    )
                Path(temporary, "site").rename(folder)
    return folder


@pytest.mark.long
def test_openvino_build_passes_its_tests():
    environment = {**os.environ, "PYTHONPATH": f"{installed_build()}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-8000:]
