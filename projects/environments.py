"""Separate environments for the peers, made by uv and kept in
`~/.cache/onnxserve-benchmarks`.
"""

import fcntl
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path("~/.cache/onnxserve-benchmarks").expanduser()
_MODULES = {"scikit-learn": "sklearn"}


class NotInstalled(Exception):
    """A peer that cannot be installed here, with the reason."""


def environment(requirements: tuple[str, ...], installs: bool) -> Path:
    """Return the folder of the programs of an environment with these requirements,
    whose first names it. It is created if `installs`; otherwise the environment of this
    process is used if it has the packages.

    Raises:
        NotInstalled: neither has the packages, or uv cannot install them.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256("\n".join([python, *requirements]).encode()).hexdigest()[:12]
    names = [re.split(r"[=<\[]", requirement)[0] for requirement in requirements]
    folder = CACHE / f"{names[0]}-{digest}"
    if (folder / "ready").exists():
        return folder / "bin"
    if not installs:
        if all(importlib.util.find_spec(_MODULES.get(name, name)) for name in names):
            return Path(sys.executable).parent
        raise NotInstalled(f"install it with python benchmarks/serve.py --peers {names[0]}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The processes of a benchmark start together.
        if not (folder / "ready").exists():
            _install(folder, requirements)
    return folder / "bin"


def _install(folder: Path, requirements: tuple[str, ...]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    print(f"  installing {' '.join(requirements)}", file=sys.stderr, flush=True)
    _uv("venv", "--quiet", "--python", sys.executable, str(folder))
    _uv("pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *requirements)
    (folder / "ready").touch()


def versions(programs: Path, *packages: str) -> str:
    """Return `name version` of each package of an environment."""
    code = (
        "import sys; from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' "
        "for n in sys.argv[1:]))"
    )
    shown = subprocess.run(
        [programs / "python", "-c", code, *packages],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.strip()


def _uv(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotInstalled(" ".join(done.stderr.split())[-300:])
