"""Separate environments for the peers, made by uv and kept in
`~/.cache/onnxserve-benchmarks`.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path("~/.cache/onnxserve-benchmarks").expanduser()


class NotInstalled(Exception):
    """A peer that cannot be installed here, with the reason."""


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the folder of the environment's programs, and create the environment if it
    does not exist.

    Raises:
        NotInstalled: uv cannot install the requirements.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256("\n".join([python, *requirements]).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"  installing {' '.join(requirements)}", file=sys.stderr, flush=True)
        _uv("venv", "--quiet", "--python", sys.executable, str(folder))
        _uv("pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *requirements)
        (folder / "ready").touch()
    return folder / "bin"


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
