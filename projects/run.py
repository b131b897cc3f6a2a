"""Run a module in the root of the checkout, for the commands of the files
`projects/*/MLproject`.

    python ../run.py projects.churn.train --trees 200

MLflow runs a command in the folder of its project, where `projects` cannot be
imported. This module imports only the standard library, because an environment that
MLflow has created contains nothing else before the first run.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_REQUIREMENTS = ("setup.cfg", "constraints.txt")
_MLFLOW_PREFIX = "mlflow-"
"""The beginning of the names that MLflow gives to environments which it creates."""


def main() -> None:
    """Run the module of the first argument with the other arguments, in place of this
    process.
    """
    environment = Path(sys.prefix)
    if environment.name.startswith(_MLFLOW_PREFIX):
        install_once(environment)
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


def install_once(environment: Path) -> None:
    """Install the package, unless this has been done with the same requirements."""
    requirements = b"".join((ROOT / name).read_bytes() for name in _REQUIREMENTS)
    installed = environment / f"onnxserve-{hashlib.sha256(requirements).hexdigest()[:12]}"
    if installed.exists():
        return
    print(f"installing onnxserve and its dependencies into {environment}", flush=True)
    # A build leaves files in its folder. A folder of links keeps them out of the
    # checkout.
    with tempfile.TemporaryDirectory() as folder:
        for path in ROOT.iterdir():
            (Path(folder) / path.name).symlink_to(path)
        command = [*installer(environment), "install", "-q", "-c", "constraints.txt", ".[projects]"]
        status = subprocess.run(command, cwd=folder, check=False).returncode
    if status != 0:
        sys.exit(status)
    installed.touch()


def installer(environment: Path) -> list[str]:
    """Return the command of the program that has created the environment: uv, or
    otherwise pip.
    """
    if re.search("^uv =", (environment / "pyvenv.cfg").read_text(), re.MULTILINE):
        return ["uv", "pip"]
    return [sys.executable, "-m", "pip"]


if __name__ == "__main__":
    main()
