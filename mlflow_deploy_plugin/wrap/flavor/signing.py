"""Signing the files of a version in MLflow, and verifying them by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.mlmodel import combine_hashes, hash_files
from mlflow_deploy_plugin.core.registry.model_files import (
    add_file,
    download,
    find_signature,
    refuse_links,
    require_signed,
)
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.signatures import BUNDLE, Signer, Trust
from mlflow_deploy_plugin.core.statedir.files import temporary_folder


@dataclass(frozen=True)
class SignedVersion:
    """A version with a valid signature. `digest` is the digest of its files, as in the
    verdict of the gate.
    """

    model_uri: str
    files: int
    digest: str


def sign_version(model_uri: str, signer: Signer) -> SignedVersion:
    """Sign all files of a version or logged model, and add the bundle to its files in
    MLflow. An earlier signature is replaced.

    Raises:
        InvalidArtifact: one of the files is a link.
        InvalidConfig: the key or the certificates cannot be used.
        NotInstalled: the extra `signing` is not installed.
        NotFound: the version or its files do not exist.
        RegistryUnavailable: MLflow or its artifact store does not answer.
    """
    resolved = resolve(model_uri)
    with _files_of(resolved) as folder:
        bundle = folder.parent / BUNDLE
        signer.sign(folder, bundle, resolved.source if resolved.registered_at else "")
        add_file(resolved.source, bundle)
        return _signed(resolved, folder)


def verify_version(model_uri: str, trust: Trust) -> SignedVersion:
    """Check that the key or authority has signed exactly the files of a version.

    Raises SignatureRefused if it has not, and the errors of `sign_version`.
    """
    resolved = resolve(model_uri)
    signature = find_signature(resolved.source, trust)
    with _files_of(resolved) as folder:
        require_signed(resolved, folder, signature)
        return _signed(resolved, folder)


@contextmanager
def _files_of(resolved: ResolvedModel) -> Iterator[Path]:
    with temporary_folder("onnxserve-signing-") as temporary:
        folder = download(resolved.source, temporary / "files")
        refuse_links(folder)
        yield folder


def _signed(resolved: ResolvedModel, folder: Path) -> SignedVersion:
    hashes = hash_files(folder)
    return SignedVersion(resolved.source, len(hashes), combine_hashes(hashes))
