"""The requirements of setup.cfg, compared with the installed packages.

Pip ignores the requirements of packages that were installed earlier: it installs
mlflow-skinny 3 next to mlflow 2, and exits with status 0.
"""

import re
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import NotInstalled

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NEEDED = ("mlflow", "mlflow-skinny", "numpy")
"""The packages without which no command works."""


@cache
def check_fit(*names: str) -> list[str]:
    """Return those of these distributions that are installed, with their versions.
    Raises NotInstalled, with the pip command, if a version does not fit onnxserve.
    """
    found = []
    needed = []
    for _, package in own_requirements():
        installed = package.name in names and installed_version(package.name)
        if installed:
            found.append(f"{package.name} {installed}")
            if installed not in package.specifier:
                needed.append(f"'{package.name}{package.specifier}'")
    if needed:
        raise NotInstalled(
            f"this environment does not fit onnxserve ({', '.join(found)}): pip install "
            f"{' '.join(needed)}",
        )
    return found


@cache
def own_requirements() -> "list[tuple[str, Requirement]]":
    """Return the requirements of onnxserve, and of its extras with the extra."""
    from packaging.requirements import Requirement  # The import takes some milliseconds.

    entries = []
    with suppress(PackageNotFoundError):
        for line in requires("mlflow-onnxserve") or []:
            extra = re.search(r"extra == .(\w+)", line)
            entries.append((extra[1] if extra else "", Requirement(line)))
    return entries


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution; empty if it is not installed."""
    with suppress(PackageNotFoundError):
        return version(distribution)
    return ""
