"""Verification: the checks that a version passes before the workers are told to load it.

`verify_files` compares the files of a version with the files that were saved. `PyfuncPolicy` decides whether a version
without an ONNX form may run: it is Python code of its author, run by this server's user.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.errors import InvalidArtifact, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.registry import refuse_links
from mlflow_deploy_plugin.runtime import FLAVOR, MLMODEL, altered_file_message, read_mlmodel, read_served_artifact
from mlflow_deploy_plugin.spec import EndpointSpec


def verify_files(folder: Path) -> str:
    """Check the fetched files of a version and return the digest of all of them.

    Raises:
        InvalidArtifact: the files are not a model that can be served, or there are links among them.
        NotFound: a file is missing. MLflow may list and return fewer files than were saved; somebody may restore it.
        RegistryUnavailable: a file differs from the one that was saved (`flavor/saved_model.py`). The artifact store
            may return the right one the next time.
    """
    refuse_links(folder)
    if not (folder / MLMODEL).is_file():
        raise NotFound("its files in the artifact store are gone, or no MLflow model: there is no MLmodel among them")
    flavors = read_mlmodel(folder).get("flavors")
    for name in (FLAVOR, "onnx"):
        section = flavors.get(name) if isinstance(flavors, Mapping) else None
        data = section.get("data") if isinstance(section, Mapping) else None
        if isinstance(data, str) and not (folder / data).exists():
            raise NotFound(f"its file {data!r} is gone from the artifact store")
    hashes = _hash_files(folder)
    saved: Any = flavors
    for key in (FLAVOR, "digests"):
        saved = saved.get(key) if isinstance(saved, Mapping) else None
    for name, expected in (saved if isinstance(saved, Mapping) else {}).items():
        sha256 = hashes.get(Path(os.path.normpath(str(name))))
        digest = f"sha256:{sha256}" if sha256 else "no such file"
        if digest != expected:
            raise RegistryUnavailable(altered_file_message(str(name), digest, str(expected)))
    read_served_artifact(folder)
    return _combine(hashes)


def digest_files(folder: Path) -> str:
    """Return the SHA-256 over the path and the content of every file."""
    return _combine(_hash_files(folder))


def _hash_files(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of every file, by its path within the folder."""
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            hashes[path.relative_to(folder)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _combine(hashes: Mapping[Path, str]) -> str:
    digest = hashlib.sha256()
    for path, sha256 in hashes.items():
        digest.update(f"{path}\0{sha256}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class PyfuncPolicy:
    """The rule of one server about versions without an ONNX form.

    A model that the server's own spec names by a reference that always means the same version may run: whoever wrote
    the spec agreed to it. A stage, an alias or a tag may mean another version tomorrow, moved by anybody who may move
    it in the registry. A model that was loaded over HTTP was named by anybody who may call. Both need
    `allow_pyfunc` in the spec.

    Attributes:
        named: the model URIs in the server's own spec.
        allowed: the URIs that every variant naming them allows to be pyfuncs.
    """

    named: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()

    def check(self, model_uri: str, is_followed: bool) -> None:
        """Check that a version without an ONNX form may be served for this URI.

        Raises:
            InvalidArtifact: it may not; the message says what would allow it.
        """
        if model_uri in self.allowed or (model_uri in self.named and not is_followed):
            return
        what = "the version has no ONNX form, so that serving it runs code of its own"
        if model_uri in self.named:
            raise InvalidArtifact(
                f"{what}; for a stage, an alias or a tag, -C variants.NAME.allow_pyfunc=true allows that "
                "(of `mlflow deployments create` and `update` also --flavor python_function)"
            )
        raise InvalidArtifact(f"{what}, which only the server's own spec can allow")


def pyfunc_policy(specs: Sequence[EndpointSpec]) -> PyfuncPolicy:
    """Return the policy that the server's own specs set."""
    variants = [variant for spec in specs for variant in spec.variants.values()]
    refused = {variant.model for variant in variants if not variant.allow_pyfunc}
    named = frozenset(variant.model for variant in variants)
    return PyfuncPolicy(named, named - refused)
