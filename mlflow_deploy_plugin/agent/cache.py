"""The models on this disk: each version once, by the digest of its files, whole or not at all.

    CACHE/models/<digest>/          the MLmodel folder, never changed again
    CACHE/sources/<key>             which digest a version was fetched as, so that a restart needs no artifact store
    CACHE/users/<key>               the path of a state folder whose wanted.json may name models here
    CACHE/fetching-*/               downloads under way; renamed into models/ in one step

Several agents share one cache. Two that fetch the same version do it twice and keep the first; nothing is deleted that
a wanted.json or followed.json names, that is among the latest, or that was asked for within the hour.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.registry.model_files import download, refuse_links
from mlflow_deploy_plugin.runtime.artifact import FLAVOR, altered_message
from mlflow_deploy_plugin.runtime.mlmodel import MLMODEL, read_mlmodel
from mlflow_deploy_plugin.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.server.state import FOLLOWED, WANTED, Followed, Wanted, read_state, write_atomically

_log = logging.getLogger(__name__)

_KEPT_LATEST = 5
_HOUR = 3600
_DAY = 24 * _HOUR


class ModelCache:
    """The cache at `root`, as one agent with the state folder `state_dir` uses it.

    Raises:
        InvalidConfig: the folder cannot be written.
    """

    def __init__(self, root: Path, state_dir: Path) -> None:
        self._root = root
        self._models = root / "models"
        try:
            self._models.mkdir(parents=True, exist_ok=True)
            write_atomically(root / "users" / _key(str(state_dir)), str(state_dir.absolute()).encode())
        except OSError as error:
            raise InvalidConfig(f"the model cache {root} cannot be written: {error.strerror}") from None

    def fetch(self, source: str, identity: str | None) -> Path:
        """The folder with the files of `source`.

        Args:
            identity: names these files for good (registry and version), so that they need not be fetched again;
                None where the same source may hold other files tomorrow.

        Raises:
            InvalidArtifact: the files are no model that can be served, or there are links among them.
            OnnxserveError: the disk is full, or the cache cannot be written.
            NotFound, RegistryUnavailable: see `registry.download`; also where some are gone, or not those saved.
        """
        remembered = None if identity is None else self._root / "sources" / _key(identity)
        try:
            folder = self._cached(remembered)
            if folder is None:
                folder = self._download(source)
                if remembered is not None:
                    write_atomically(remembered, folder.name.encode())
            os.utime(folder)
        except OSError as error:
            raise OnnxserveError(f"the model cache {self._root} cannot take {source}: {error.strerror}") from None
        return folder

    def prune(self, now: float | None = None) -> None:
        """Deletes what nobody wants any more."""
        now = time.time() if now is None else now
        by_age = sorted(self._models.iterdir(), key=_modified, reverse=True)
        wanted = self._wanted()
        for folder in by_age[_KEPT_LATEST:]:
            if folder.name not in wanted and now - _modified(folder) > _HOUR:
                _log.info("deleting %s from the cache", folder.name)
                shutil.rmtree(folder, ignore_errors=True)
        for left_over in self._root.glob("fetching-*"):
            if now - _modified(left_over) > _DAY:
                shutil.rmtree(left_over, ignore_errors=True)

    def _cached(self, remembered: Path | None) -> Path | None:
        """The folder fetched before, if its files still are what they were."""
        if remembered is None or not remembered.exists():
            return None
        folder = self._models / remembered.read_text()
        if not folder.is_dir():
            return None
        if _digest(_hashes(folder)) == folder.name:
            return folder
        _log.warning("%s was changed on disk; it is fetched again", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def _download(self, source: str) -> Path:
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=self._root) as temporary:
            fetched = download(source, Path(temporary))
            refuse_links(fetched)
            _check_all_there(fetched)
            hashes = _hashes(fetched)
            _check_digests(fetched, hashes)
            read_served_artifact(fetched)
            folder = self._models / _digest(hashes)
            try:
                fetched.rename(folder)
            except OSError:
                if not (folder / MLMODEL).is_file():  # else another agent was first with the same files
                    raise
        return folder

    def _wanted(self) -> set[str]:
        """Names of the folders that some server's wanted.json names; users whose state folder is gone are forgotten."""
        names: set[str] = set()
        for user in (self._root / "users").glob("[!.]*"):
            try:
                state_dir = Path(user.read_text())
            except FileNotFoundError:
                continue  # another agent has forgotten it meanwhile
            if not state_dir.is_dir():
                user.unlink(missing_ok=True)
                continue
            wanted = read_state(state_dir / WANTED, Wanted) or Wanted()
            names |= {v.folder.name for endpoint in wanted.endpoints.values() for v in endpoint.variants.values()}
            followed = read_state(state_dir / FOLLOWED, Followed) or Followed()
            known = (one for reference in followed.references for one in (reference.version, reference.previous))
            names |= {one.folder.name for one in known if one is not None}
        return names


def _check_all_there(folder: Path) -> None:
    """What MLflow lists and gives may be less than what was saved.

    Raises:
        NotFound: a file is missing; somebody may put it back.
    """
    if not (folder / MLMODEL).is_file():
        raise NotFound("its files in the artifact store are gone, or no MLflow model: there is no MLmodel among them")
    flavors = read_mlmodel(folder).get("flavors")
    for name in (FLAVOR, "onnx"):
        section = flavors.get(name) if isinstance(flavors, Mapping) else None
        data = section.get("data") if isinstance(section, Mapping) else None
        if isinstance(data, str) and not (folder / data).exists():
            raise NotFound(f"its file {data!r} is gone from the artifact store")


def _check_digests(folder: Path, hashes: Mapping[Path, str]) -> None:
    """The files are those that were saved, as far as the model says what those were (`flavor/section.py`).

    Raises:
        RegistryUnavailable: the artifact store has given others; it may give the right ones the next time.
    """
    found: Any = read_mlmodel(folder)
    for key in ("flavors", FLAVOR, "digests"):
        found = found.get(key) if isinstance(found, Mapping) else None
    for name, expected in (found if isinstance(found, Mapping) else {}).items():
        sha256 = hashes.get(Path(os.path.normpath(str(name))))
        digest = f"sha256:{sha256}" if sha256 else "no such file"
        if digest != expected:
            raise RegistryUnavailable(altered_message(str(name), digest, str(expected)))


def _hashes(folder: Path) -> dict[Path, str]:
    """The SHA-256 of every file, by its path within the folder."""
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            hashes[path.relative_to(folder)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _digest(hashes: Mapping[Path, str]) -> str:
    """SHA-256 over every file's path and content."""
    digest = hashlib.sha256()
    for path, sha256 in hashes.items():
        digest.update(f"{path}\0{sha256}\n".encode())
    return digest.hexdigest()


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
