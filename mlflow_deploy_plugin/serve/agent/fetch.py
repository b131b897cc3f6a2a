"""Fetching: resolved model references become verified files on this disk, in a cache
that agents share.

- `CACHE/models/<digest>/`: the MLmodel folder, which is never changed
- `CACHE/sources/<key>`: the digest of a fetched version, so that a restart does not
  need the artifact store
- `CACHE/users/<key>`: the path of a state folder whose wanted.json may name models in
  the cache
- `CACHE/environments/pyfunc-*/`: the environments of pyfuncs (`pyfunc_environment.py`)
- `CACHE/fetching-*/`: running downloads, which are moved to models/ by an atomic rename

If two agents fetch a version at the same time, both agents download it, and the first
copy is kept. A model or an environment is kept while a wanted.json or followed.json
names it, while it is among the latest, and for an hour after its last use.
"""

import gc
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, NoReturn

from mlflow_deploy_plugin.core.errors import (
    CodeRefused,
    GateRefused,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    RegistryRefused,
    RegistryUnavailable,
    SignatureRefused,
)
from mlflow_deploy_plugin.core.mlmodel import (
    FLAVOR,
    MLMODEL,
    combine_hashes,
    hash_files,
    hash_folder,
    read_mlmodel,
)
from mlflow_deploy_plugin.core.registry.approved_files import Approval, approval_of
from mlflow_deploy_plugin.core.registry.connection import registry_address
from mlflow_deploy_plugin.core.registry.model_files import (
    download,
    find_signature,
    refuse_links,
    require_signed,
)
from mlflow_deploy_plugin.core.registry.model_folders import read_model
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.registry.tags import ERROR_TAG, tag_version, untag_version
from mlflow_deploy_plugin.core.signatures import Signature, trust_file
from mlflow_deploy_plugin.core.statedir.files import (
    FOLLOWED,
    SERVED,
    WANTED,
    build_once,
    read_state,
    write_atomically,
)
from mlflow_deploy_plugin.core.statedir.models import (
    FetchedVersion,
    Followed,
    ServedModel,
    Wanted,
)
from mlflow_deploy_plugin.serve.agent.pyfunc_environment import (
    PYFUNC_PREFIX,
    environment_python,
)
from mlflow_deploy_plugin.serve.inference.jobs import read_jobs
from mlflow_deploy_plugin.serve.runtime.artifact import (
    Artifact,
    altered_file_message,
    check_digests,
)
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import proof_rows, read_served_artifact

_log = logging.getLogger(__name__)

ADOPTED = "adopted"
"""The folder in a state folder with the MLmodel folders of model files."""
_KEPT_LATEST = 5
_HOUR = 3600
_DAY = 24 * _HOUR
_PRUNE_SECONDS = 60.0
RELEASED = 0
"""The time of the last use of a model that should leave the disk."""
_FIRST_PAUSE = 50
"""The seconds until refused files are downloaded again. The resolver tries a refused
version again after a minute.
"""


class ModelCache:
    """The cache at `root` for the agent of a state folder. Raises InvalidConfig if the
    cache cannot be written.
    """

    def __init__(self, root: Path, state_dir: Path) -> None:
        self._root = root
        self.drafts = root
        """The folder for files that will be moved to the models."""
        self.adopted = state_dir / ADOPTED
        self.environments = root / "environments"
        self._models = root / "models"
        self._pruned_at = 0.0
        self._downloads: dict[str, Path] = {}
        """The folders of the running downloads, by source."""
        user = root / "users" / _key(str(state_dir))
        folder = str(state_dir.absolute())
        try:
            # The mode does not apply to copied files.
            self._models.mkdir(parents=True, exist_ok=True, mode=0o770)
            # An unnecessary write could fail on a full disk.
            if not user.exists() or user.read_text() != folder:
                write_atomically(user, folder.encode())
        except OSError as error:
            raise InvalidConfig(
                f"the model cache {root} cannot be written: {error.strerror}",
            ) from None

    def fetch(
        self,
        source: str,
        identity: str | None,
        judged: str = "",
    ) -> Path:
        """Return the folder with the files of `source`. Download the files if they are
        not cached.

        Args:
            identity: the registry and the version, whose files are fetched only once;
                None for files that may change.
            judged: the digest of the judged or approved files; a cached copy with a
                different digest is not used.

        Raises:
            InvalidArtifact: the files are not a model that can be served, or they
                contain links.
            NotFound: files are missing in the artifact store.
            RegistryUnavailable: the artifact store does not answer, or a file differs
                from the saved file.
            OnnxserveError: the disk is full, or the cache cannot be written.
        """
        entry = None if identity is None else self._root / "sources" / _key(identity)
        try:
            if entry is not None and entry.exists():
                folder = self._models / entry.read_text()
                if judged in ("", folder.name) and self.holds(folder.name):
                    return folder
            # Free MLflow's clients of earlier downloads, whose reference cycles keep
            # threads alive.
            gc.collect(1)
            with tempfile.TemporaryDirectory(prefix="fetching-", dir=self._root) as temporary:
                self._downloads[source] = Path(temporary)
                try:
                    fetched = download(source, Path(temporary))
                finally:
                    self._downloads.pop(source, None)
                folder = self.keep(fetched)
            if entry is not None:
                write_atomically(entry, folder.name.encode())
        except OSError as error:
            raise OnnxserveError(
                f"the model cache {self._root} cannot store {source}: {error.strerror}",
            ) from None
        return folder

    def folder_of(self, digest: str) -> Path:
        return self._models / digest

    def holds(self, digest: str) -> bool:
        """Return True if the models have the files of this digest, and mark them as
        used. Files that were changed on disk are deleted. Raises OSError.
        """
        folder = self.folder_of(digest)
        if not folder.is_dir():
            return False
        # Mark the folder as used before the check, because another agent may delete
        # unused models.
        os.utime(folder)
        if hash_folder(folder) == folder.name:
            os.utime(folder)
            return True
        _log.warning("%s was changed on disk and is made again", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return False

    def keep(self, draft: Path) -> Path:
        """Move a verified folder to the models, and return its place. Raises the errors
        of `verify_files`, and OSError.
        """
        folder = self.folder_of(verify_files(draft))
        try:
            draft.rename(folder)
        except OSError:
            # Another agent may have put the model there first.
            if not (folder / MLMODEL).is_file():
                raise
        os.utime(folder)
        return folder

    def forget(self, identity: str | None) -> None:
        """Fetch the files of a version from the artifact store next time."""
        if identity is not None:
            (self._root / "sources" / _key(identity)).unlink(missing_ok=True)

    def received_bytes(self, source: str) -> int:
        """Return the size on this disk of the running download of `source`; 0 if there
        is no download.
        """
        # `walk` skips missing folders, because the download may end.
        total_bytes = 0
        for folder, _, names in os.walk(self._downloads.get(source, "")):
            total_bytes += sum(_status(Path(folder, name)).st_size for name in names)
        return total_bytes

    def prune(self, now: float | None = None) -> None:
        """Delete the models and environments that no server uses and abandoned
        downloads, and forget servers whose state folder was deleted. `now` is in
        seconds since 1970. Without `now`, a cache is pruned once per minute.
        """
        if now is None:
            now = time.time()
            if now - self._pruned_at < _PRUNE_SECONDS:
                return
        self._pruned_at = now
        used = set[str]()
        for user in (self._root / "users").glob("[!.]*"):
            try:
                state_dir = Path(user.read_text())
            except FileNotFoundError:
                continue  # Another agent has removed the file.
            if not state_dir.is_dir():
                user.unlink(missing_ok=True)
                continue
            wanted = read_state(state_dir / WANTED, Wanted) or Wanted()
            followed = read_state(state_dir / FOLLOWED, Followed) or Followed()
            served = [
                read_state(file, ServedModel) for file in (state_dir / SERVED).glob("[!.]*.json")
            ]
            endpoints = [*wanted.endpoints.values()]
            for model in filter(None, served):
                endpoints += filter(None, (model.endpoint, model.previous))
            for version in chain(
                *(endpoint.variants.values() for endpoint in endpoints),
                *(reference.versions for reference in followed.references),
                (job.request.variant for job in read_jobs(state_dir) if not job.is_ended),
            ):
                if version is not None:
                    used |= {version.folder.name, Path(version.python).parent.parent.name}
        for cached in (
            self._models.iterdir(),
            self.environments.glob(f"{PYFUNC_PREFIX}*/"),
            self.adopted.glob("*/"),
        ):
            newest_first = sorted(cached, key=lambda folder: _status(folder).st_mtime, reverse=True)
            for place, folder in enumerate(newest_first):
                used_at = _status(folder).st_mtime
                is_kept = now - used_at < _HOUR or (place < _KEPT_LATEST and used_at > RELEASED)
                if folder.name not in used and not is_kept:
                    _log.info("deleting %s from the cache", folder.name)
                    shutil.rmtree(folder, ignore_errors=True)
        for left_over in self._root.glob("fetching-*"):
            if now - _status(left_over).st_mtime > _DAY:
                shutil.rmtree(left_over, ignore_errors=True)


@dataclass(frozen=True)
class _RefusedFiles:
    """Files of a version that are not the approved or signed files.

    Attributes:
        approved: the digests of the approved files, and of the signature.
        pause: the seconds until the files may be downloaded again, at `until`
            (monotonic).
    """

    approved: tuple[str, ...]
    error: OnnxserveError
    pause: int
    until: float


@dataclass(frozen=True)
class MlflowRegistry:
    """The `Registry` of the resolver, which uses MLflow and the cache. `_refused` has
    the refused files by identity and key.
    """

    cache: ModelCache
    clock: Callable[[], float] = time.monotonic
    _refused: dict[str, _RefusedFiles] = field(default_factory=dict, compare=False)

    def resolve(self, model_uri: str) -> ResolvedModel:
        return resolve(model_uri)

    def fetch(self, resolved: ResolvedModel, trusted_file: str = "") -> FetchedVersion:
        """Fetch and verify a version. A version that passed the gate or, if the model
        requires approvals, an approved version needs the files that were judged or
        approved. With a `trusted_file`, its key or authority must have signed the
        version. Without it, a folder on this disk is not copied.

        Raises:
            InvalidArtifact: the files are not a model that can be served, or they
                contain links.
            GateRefused: the files are not the judged or approved files.
            SignatureRefused: the files are not the signed files.
            NotFound: the version, or its files, are missing.
            RegistryUnavailable: the registry or the artifact store does not answer, or
                a file differs from the saved file.
            OnnxserveError: the cache cannot be written.
        """
        kind = parse_model_uri(resolved.source).kind
        approval = approval_of(resolved.name, resolved.version) if kind == "version" else Approval()
        signature = None
        if trusted_file:
            signature = find_signature(resolved.source, trust_file(Path(trusted_file)))
        is_served_in_place = kind == "path" and signature is None
        if is_served_in_place:
            folder = Path(resolved.source)
            file = read_model(folder)
            if file is not None:
                return FetchedVersion(
                    model=resolved.name,
                    version=file.version or "unknown",
                    folder=folder,
                    aspects=resolved.aspects,
                    identity=resolved.identity,
                    source=resolved.source,
                    runs_code=file.runs_code,
                    rows="file",
                    is_file=True,
                )
            refuse_links(folder)
            artifact = read_served_artifact(folder)
            check_digests(artifact)
        else:
            # The files of a registered or logged model never change; files of a folder,
            # a URI or a run's artifact may change.
            is_lasting = kind in ("version", "logged_model")
            folder = self._fetch_approved(resolved, approval, is_lasting, signature)
            artifact = read_served_artifact(folder)
        unjudged = ""
        if approval.judged not in (None, folder.name):
            unjudged = (
                "the audit trail of MLflow's server has no passed verdict on its files; run "
                f"`onnxserve gate {resolved.source}`"
            )
        known_aspects = _known_aspects(artifact)
        rows = proof_rows(read_mlmodel(folder))
        content = folder.name
        if rows and is_served_in_place:
            content = hash_folder(folder)
        return FetchedVersion(
            model=resolved.name,
            version=resolved.version or artifact.model_id or "unknown",
            folder=artifact.folder,
            aspects=known_aspects | resolved.aspects,
            identity=resolved.identity,
            source=resolved.source,
            runs_code=artifact.runs_code,
            rows=rows,
            content=content,
            digest="" if is_served_in_place else folder.name,
            signed_as="" if signature is None else signature.signed_as,
            unjudged=unjudged,
            unapproved_at=approval.places if approval.is_required and not approval.files else (),
        )

    def adopt(self, found: FetchedVersion) -> FetchedVersion:
        """Return the version of a model file, whose MLmodel folder is in the state
        folder.

        Raises:
            InvalidArtifact: the file cannot be loaded.
            CodeRefused: the file was replaced by a pickle.
            OnnxserveError: the state folder cannot be written.
        """
        file = read_model(found.folder)
        if file is None or (file.runs_code and not found.runs_code):
            raise CodeRefused("its file was replaced by a file of another kind; load it again")
        folder = self.cache.adopted / file.identify()
        try:
            folder.parent.mkdir(exist_ok=True)
            build_once(folder, MLMODEL, file.adopt)
            os.utime(folder)
        except OSError as error:
            raise OnnxserveError(f"its folder cannot be written: {error.strerror}") from None
        artifact = read_served_artifact(folder)
        rows: Literal["", "example", "made", "file"] = proof_rows(read_mlmodel(folder))
        if rows == "made" and file.always_converts:
            rows = "file"
        changes = {
            "folder": folder,
            "is_file": False,
            "runs_code": artifact.runs_code,
            "rows": rows,
            "content": hash_folder(folder),
            "aspects": found.aspects | _known_aspects(artifact),
        }
        return found.model_copy(update=changes)

    def _fetch_approved(
        self,
        resolved: ResolvedModel,
        approval: Approval,
        is_lasting: bool,
        signature: Signature | None,
    ) -> Path:
        """Return the folder of the version in the cache. Raises GateRefused or
        SignatureRefused if its files are not the judged or approved files, or not the
        signed files. With `is_lasting`, files are fetched only once.
        """
        identity = f"{registry_address()} {resolved.identity}" if is_lasting else None
        approved = approval.files or approval.earlier
        if not approved and approval.judged is None and resolved.gate_status.passed:
            # Without the app, the tags are the only record.
            approved = (resolved.gate_status.digest,)
        subject = resolved.identity
        required = approved
        if signature is not None:
            subject += f" {signature.trust.name}"
            required += signature.marks
        refused = self._refused.get(subject)
        if refused is not None and refused.approved == required and self.clock() < refused.until:
            # No other files have been approved or signed since.
            raise type(refused.error)(refused.error.message)
        folder = self.cache.fetch(resolved.source, identity, approved[0] if approved else "")
        self.cache.prune()
        if approved and folder.name not in approved:
            message = (
                "its files differ from the files that were judged or approved (sha256 "
                f"{folder.name[:12]}, expected {approved[0][:12]}); restore those files, or run "
                f"`onnxserve gate {resolved.source}` and request its promotion again"
            )
            self._refuse(subject, required, GateRefused(message))
        if signature is not None:
            try:
                require_signed(resolved, folder, signature)
            except SignatureRefused as error:
                self.cache.forget(identity)
                self._refuse(subject, required, error)
        self._refused.pop(subject, None)
        return folder

    def _refuse(
        self,
        subject: str,
        approved: tuple[str, ...],
        error: OnnxserveError,
    ) -> NoReturn:
        """Raise the error. The time until the next download doubles, because all files
        of the version are loaded.
        """
        previous = self._refused.get(subject)
        pause = _FIRST_PAUSE
        if previous is not None and previous.approved == approved:
            pause = min(previous.pause * 2, _HOUR)
        self._refused[subject] = _RefusedFiles(
            approved=approved,
            error=error,
            pause=pause,
            until=self.clock() + pause,
        )
        raise error

    def build_environment(self, fetched: FetchedVersion) -> FetchedVersion:
        """Return the version with its environment. Raises the errors of
        `environment_python`.
        """
        python = environment_python(fetched.folder, self.cache.environments)
        return fetched.model_copy(update={"python": str(python)})

    def received_bytes(self, resolved: ResolvedModel) -> int:
        return self.cache.received_bytes(resolved.source)

    def report_failure(self, source: str, error: str) -> bool:
        """Tag the version `source` with the error (empty: remove the tag). Return False
        if the registry is down and the write should be repeated.
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
            return isinstance(unreachable, RegistryRefused)
        return True


def _known_aspects(artifact: Artifact) -> dict[str, str]:
    """Return the details of an MLmodel folder that are reported with its version."""
    aspects = {
        "flavor": artifact.flavor,
        "run_id": artifact.run_id,
        "model_id": artifact.model_id,
        "parity": artifact.parity_state,
    }
    for name in ("git_commit", "dataset_digest"):
        aspects[name] = str(artifact.provenance.get(name) or "")
    return {name: value for name, value in aspects.items() if value}


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _status(path: Path) -> os.stat_result:
    """Return the status of a file or folder. If another thread or process has deleted
    it, all values are 0.
    """
    try:
        return path.stat()
    except FileNotFoundError:
        return os.stat_result([0] * 10)


def verify_files(folder: Path) -> str:
    """Check the fetched files of a version, and return a digest of all these files.

    Raises:
        InvalidArtifact: the files are not a model that can be served, or they contain
            links.
        NotFound: a file is missing; MLflow may list and return fewer files than were
            saved.
        RegistryUnavailable: a file differs from the saved file; a later download may
            return the right file.
    """
    refuse_links(folder)
    if not (folder / MLMODEL).is_file():
        raise NotFound(
            "its files in the artifact store were deleted or are not an MLflow model: MLmodel is "
            "missing",
        )
    mlmodel = read_mlmodel(folder)
    for name in (FLAVOR, "onnx"):
        data = _entry(mlmodel, "flavors", name, "data")
        if isinstance(data, str) and not (folder / data).exists():
            raise NotFound(f"its file {data!r} is missing in the artifact store")
    hashes = hash_files(folder)
    saved = _entry(mlmodel, "flavors", FLAVOR, "digests")
    digests = saved if isinstance(saved, Mapping) else {}
    for name, expected in digests.items():
        sha256 = hashes.get(Path(os.path.normpath(str(name))))
        digest = f"sha256:{sha256}" if sha256 else "no such file"
        if digest != expected:
            raise RegistryUnavailable(altered_file_message(str(name), digest, str(expected)))
    read_served_artifact(folder)
    return combine_hashes(hashes)


def _entry(document: object, *keys: str) -> object:
    """Return the entry at the path `keys` of nested mappings; None if it does not
    exist, as in a malformed file.
    """
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document
