"""A version whose files are on this disk: how it is fetched, and where its failures are told."""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.registry.connection import registry_address
from mlflow_deploy_plugin.registry.model_files import download, refuse_links
from mlflow_deploy_plugin.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.registry.resolve import BatchResolver, Resolution, ResolvedModel
from mlflow_deploy_plugin.registry.tags import ERROR_TAG, tag_version, untag_version
from mlflow_deploy_plugin.runtime import (
    FLAVOR,
    MLMODEL,
    PYTHON_FUNCTION,
    Artifact,
    altered_file_message,
    check_digests,
    read_mlmodel,
    read_served_artifact,
)
from mlflow_deploy_plugin.statedir import FOLLOWED, WANTED, Followed, Wanted, read_state, write_atomically

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedVersion:
    """One version, ready to be loaded.

    Attributes:
        identity: `ResolvedModel.identity` of what was fetched; empty where only wanted.json tells of it.
        source: where the files came from.
        runs_code: it has no ONNX form.
    """

    model: str
    version: str
    folder: Path
    aspects: dict[str, str] = field(default_factory=dict)
    identity: str = ""
    source: str = ""
    runs_code: bool = False


@dataclass(frozen=True)
class MlflowRegistry:
    """The world outside of `Follower`: MLflow, and the cache that its files come into."""

    cache: "ModelCache"
    lookup: BatchResolver = field(default_factory=BatchResolver)

    def resolve(self, model_uris: Sequence[str]) -> dict[str, Resolution]:
        """What each URI means now, or why that cannot be told."""
        return self.lookup.resolve(model_uris)

    def fetch(self, resolved: ResolvedModel) -> FetchedVersion:
        """Fetches and verifies; a folder on this disk is served from where it stands.

        Raises:
            InvalidArtifact, NotFound, RegistryUnavailable: see `ModelCache.fetch`.
        """
        if parse_model_uri(resolved.source).kind == "path":
            folder = Path(resolved.source)
            refuse_links(folder)
            artifact = read_served_artifact(folder)
            check_digests(artifact)
            return _fetched_version(resolved, artifact)
        folder = self.cache.fetch(resolved.source, _lasting_identity(resolved))
        self.cache.prune()
        return _fetched_version(resolved, read_served_artifact(folder))

    def report_failure(self, source: str, error: str) -> bool:
        """Tags the registered version that is `source` with the error, or takes the tag away where that is empty.

        Returns:
            False: the registry does not answer.
        """
        reference = parse_model_uri(source)
        if reference.kind != "version":
            return True
        try:
            if error:
                tag_version(reference.name, reference.selector, ERROR_TAG, error)
            else:
                untag_version(reference.name, reference.selector, ERROR_TAG)
        except NotFound:
            return True
        except RegistryUnavailable as unreachable:
            _log.warning("the version could not be tagged with its error: %s", unreachable)
            return False
        return True


def _lasting_identity(resolved: ResolvedModel) -> str | None:
    """A registered or logged model never changes its files; what stands behind a URI or in a run may."""
    if parse_model_uri(resolved.source).kind not in ("version", "logged_model"):
        return None
    return f"{registry_address()} {resolved.identity}"


def _fetched_version(resolved: ResolvedModel, artifact: Artifact) -> FetchedVersion:
    """Fills in from the MLmodel file what the registry does not say."""
    known = {
        "run_id": artifact.run_id,
        "model_id": artifact.model_id,
        "parity": artifact.parity_state,
        "git_commit": str(artifact.provenance.get("git_commit") or ""),
    }
    return FetchedVersion(
        model=resolved.name,
        version=resolved.version or artifact.model_id or "unknown",
        folder=artifact.folder,
        aspects={name: value for name, value in known.items() if value} | resolved.aspects,
        identity=resolved.identity,
        source=resolved.source,
        runs_code=artifact.flavor == PYTHON_FUNCTION,
    )


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
        if _digest(hash_files(folder)) == folder.name:
            return folder
        _log.warning("%s was changed on disk; it is fetched again", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def _download(self, source: str) -> Path:
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=self._root) as temporary:
            fetched = download(source, Path(temporary))
            refuse_links(fetched)
            check_complete(fetched)
            hashes = hash_files(fetched)
            check_saved_digests(fetched, hashes)
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


def check_complete(folder: Path) -> None:
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


def check_saved_digests(folder: Path, hashes: Mapping[Path, str]) -> None:
    """The files are those that were saved, as far as the model says what those were (`flavor/mlmodel.py`).

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
            raise RegistryUnavailable(altered_file_message(str(name), digest, str(expected)))


def hash_files(folder: Path) -> dict[Path, str]:
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
