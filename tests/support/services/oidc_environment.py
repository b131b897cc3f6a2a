"""A virtual environment with mlflow-oidc-auth and this checkout, which tests of logins
share.

mlflow-oidc-auth 11.0.2 cannot be imported by Python 3.11, and it needs a newer
SQLAlchemy than the environment of the tests. Its environment is therefore a separate
folder in the checkout, which later runs use again.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.guides import ROOT

PLUGIN = "mlflow-oidc-auth==11.0.2"
_FOLDER = ROOT / ".venv-oidc"
_ENVIRONMENT = _FOLDER / "environment"
_PACKAGES = (PLUGIN, "--editable", f"{ROOT}[cpu,ui]")
_VERSIONS = ("3.12", "3.13")
"""The versions of Python that can import the plugin and that all dependencies of the
package support.
"""


def oidc_python():
    """Return the Python of the environment, which is created if it is missing or
    outdated.

    Skip the test if this machine has no suitable Python, or if the package index cannot
    be reached. Workers of pytest-xdist and other runs in this checkout wait for each
    other.
    """
    interpreter = _interpreter()
    if interpreter is None:
        pytest.skip(
            f"{PLUGIN} needs Python {' or '.join(_VERSIONS)}, which is not installed on this "
            "machine"
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
    if sys.version_info[:2] in [tuple(map(int, version.split("."))) for version in _VERSIONS]:
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
    """Create the environment and install the packages with uv, or with pip if uv is not
    installed.
    """
    uv = [sys.executable, "-m", "uv"]
    if _run([*uv, "--version"]).returncode == 0:
        create = [*uv, "venv", "-q", "--python", interpreter, str(_ENVIRONMENT)]
        install = [*uv, "pip", "install", "-q", "--python", str(python)]
    else:
        create = [interpreter, "-m", "venv", str(_ENVIRONMENT)]
        install = [str(python), "-m", "pip", "install", "-q"]
    created = _run(create)
    assert created.returncode == 0, created.stderr
    installed = _run([*install, *_PACKAGES])
    if installed.returncode != 0:
        # If the index has the plugin, the requirements of the plugin and of the package
        # exclude each other.
        assert _run([*install, "--dry-run", "--no-deps", PLUGIN]).returncode != 0, installed.stderr
        pytest.skip(f"{PLUGIN} cannot be installed: {installed.stderr.strip()}")


def _run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
