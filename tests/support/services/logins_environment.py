"""A virtual environment with the plugins of logins and this checkout, which tests of
logins share.

mlflow-oidc-auth 11.0.2 cannot be imported by Python 3.11, and it needs a newer
SQLAlchemy than the environment of the tests. mlflow-kubernetes-plugins 2.1.0 cannot be
installed on Python 3.11, and it needs MLflow 3.17. Their environment is therefore a
separate folder in the checkout, which later runs use again.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.guides import ROOT
from tests.support.services.mlflow_server import MlflowServer

PLUGINS = ("mlflow-oidc-auth==11.0.2", "mlflow-kubernetes-plugins==2.1.0")
"""The versions with which the adapters are tested. The adapter of Kubernetes uses
private names of its plugin.
"""
_NAMES = " and ".join(PLUGINS)
_FOLDER = ROOT / ".venv-logins"
_ENVIRONMENT = _FOLDER / "environment"
_PACKAGES = (*PLUGINS, "--editable", f"{ROOT}[cpu,ui]")
_VERSIONS = ("3.12", "3.13")
"""The versions of Python that can import the plugins and that all dependencies of the
package support.
"""


def login_server(folder, app):
    """Return MLflow's server, not yet started, with the code of this checkout on top of
    an app with a login.
    """
    server = MlflowServer(folder, app="onnxserve", python=str(_python()))
    server.variables = {
        "ONNXSERVE_HOME": str(folder / "home"),
        "ONNXSERVE_MLFLOW_APP": app,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": "",
    }
    return server


def _python():
    """Return the Python of the environment, which is created if it is missing or
    outdated.

    Skip the test if this machine has no suitable Python, or if the package index cannot
    be reached. Workers of pytest-xdist and other runs in this checkout wait for each
    other.
    """
    interpreter = _interpreter()
    if interpreter is None:
        pytest.skip(
            f"{_NAMES} need Python {' or '.join(_VERSIONS)}, which is not installed on this machine"
        )
    # Entry points are read from the metadata, which an editable installation copies
    # from setup.cfg.
    key = hashlib.sha256(
        f"{interpreter} {_PACKAGES} {(ROOT / 'setup.cfg').read_text()}".encode()
    ).hexdigest()
    python = _ENVIRONMENT / "bin" / "python"
    complete = _FOLDER / "complete"
    _FOLDER.mkdir(exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists() or complete.read_text() != key:
            complete.unlink(missing_ok=True)
            shutil.rmtree(_ENVIRONMENT, ignore_errors=True)
            _install(interpreter, python)
            complete.write_text(key)
    return python


def _interpreter():
    """Return the path of a suitable Python: this process' Python, or a Python on PATH
    or in pyenv.
    """
    if f"3.{sys.version_info.minor}" in _VERSIONS:
        return sys.executable
    for version in _VERSIONS:
        command = [f"python{version}", "-c", "import sys; print(sys.executable)"]
        environment = {**os.environ, "PYENV_VERSION": version}  # pyenv's shims read this variable.
        if shutil.which(command[0]) is not None:
            result = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if result.returncode == 0:
                return result.stdout.strip()
    return None


def _install(interpreter, python):
    """Create the environment and install the packages with uv."""
    uv = [sys.executable, "-m", "uv"]
    install = [*uv, "pip", "install", "-q", "--python", str(python)]
    created = _run([*uv, "venv", "-q", "--python", interpreter, str(_ENVIRONMENT)])
    assert created.returncode == 0, created.stderr
    installed = _run([*install, *_PACKAGES])
    if installed.returncode != 0:
        # If the index has the plugins, the requirements of the plugins and of the
        # package exclude each other.
        found = _run([*install, "--dry-run", "--no-deps", *PLUGINS])
        assert found.returncode != 0, installed.stderr
        pytest.skip(f"{_NAMES} cannot be installed: {installed.stderr.strip()}")


def _run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
