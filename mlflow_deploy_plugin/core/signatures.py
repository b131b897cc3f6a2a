"""Signatures over the files of a version: bundles of OpenSSF Model Signing, which
`model_signing verify` accepts too.

The bundle `model.sig` is in the folder of the files. It is not part of the version: a
signature that is added later does not change the digest of the files, and servers never
load it.
"""

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import orjson

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotInstalled,
    OnnxserveError,
    SignatureRefused,
    pass_exit,
)
from mlflow_deploy_plugin.core.messages import one_line

if TYPE_CHECKING:
    from model_signing import hashing, signing, verifying

BUNDLE = "model.sig"
UNSIGNED = (BUNDLE, "registered_model_meta")
"""The plain files that a signature never covers. MLflow writes the second file when it
downloads a registered version.
"""
_MODEL_URI = "model_uri"
_PIN = re.compile(r"pin-value=[^&;\s]*")
_MOST_BYTES = 16 * 2**20
"""The largest bundle that is read; a bundle has some 200 bytes per file."""


@dataclass(frozen=True)
class Signer:
    """A private key that signs versions.

    Attributes:
        key: the path of a PEM file with an elliptic-curve key (P-256, P-384 or P-521),
            or the PKCS#11 URI of such a key.
        certificate: the path of the key's certificate in PEM; empty if the signature is
            verified with the public key.
        chain: the paths of the certificates between `certificate` and the authority.
    """

    key: str = field(repr=False)  # It may have a PIN.
    certificate: str = ""
    chain: tuple[str, ...] = ()

    def check_key(self) -> None:
        """Raise InvalidConfig if the key or the certificates cannot be used, and
        NotInstalled.
        """
        with self._errors():
            self._configured()

    def sign(self, folder: Path, bundle: Path, model_uri: str = "") -> None:
        """Write the bundle over all files in the folder. It has an annotation with the
        URI models:/NAME/VERSION if one is passed. Raises the errors of `check_key`.
        """
        with self._errors():
            from model_signing._signing.signing import Payload  # The extra `signing`.

            # `Config.sign` of the library has no annotations.
            payload = Payload(_hashing().hash(folder))
            if model_uri:
                payload.statement.pb.subject[0].annotations.update({_MODEL_URI: model_uri})
            config: Any = self._configured()
            config._signer.sign(payload).write(bundle)

    def sign_text(self, name: str, text: str, bundle: Path) -> None:
        """Write the bundle over a single file of this name and text. Raises the errors
        of `check_key`.
        """
        with _folder_of(name, text) as folder:
            self.sign(folder, bundle)

    def _errors(self) -> AbstractContextManager[None]:
        # The query of a PKCS#11 URI has the PIN.
        name = self.key.partition("?")[0]
        return _library_errors(f"the elliptic-curve key {name} cannot sign", InvalidConfig)

    def _configured(self) -> "signing.Config":
        """Return the library's configuration with this key."""
        from model_signing import signing  # The extra `signing`.

        config = signing.Config()  # type: ignore[no-untyped-call]
        certificates: dict[str, Any] = {}
        if self.certificate:
            certificates["signing_certificate"] = Path(self.certificate)
            # The library cannot read an empty chain.
            chain = self.chain or (self.certificate,)
            certificates["certificate_chain"] = list(map(Path, chain))
        if self.key.startswith("pkcs11:"):
            if certificates:
                return config.use_pkcs11_certificate_signer(pkcs11_uri=self.key, **certificates)
            return config.use_pkcs11_signer(pkcs11_uri=self.key)
        if certificates:
            return config.use_certificate_signer(private_key=self.key, **certificates)
        return config.use_elliptic_key_signer(private_key=self.key)


@dataclass(frozen=True)
class Trust:
    """A public key, or the certificates of authorities, in PEM. `name` describes their
    place in messages.
    """

    pem: bytes
    name: str

    @property
    def is_authority(self) -> bool:
        return b"-----BEGIN CERTIFICATE-----" in self.pem

    def verifier(self, folder: Path) -> "verifying.Config":
        """Return the library's configuration. The PEM is written into the folder,
        because the library reads files.
        """
        from model_signing import verifying  # The extra `signing`.

        file = folder / "trusted.pem"
        file.write_bytes(self.pem)
        config = verifying.Config()  # type: ignore[no-untyped-call]
        if self.is_authority:
            return config.use_certificate_verifier(certificate_chain=[file])
        return config.use_elliptic_key_verifier(public_key=file)


def trust_file(path: Path) -> Trust:
    """Return the key or the certificates in a file of this machine. Raises
    SignatureRefused if the file cannot be read.
    """
    try:
        return Trust(path.read_bytes(), str(path))
    except OSError as error:
        raise SignatureRefused(
            f"the key or certificate {path}, which must be a file where the check runs, cannot be "
            f"read: {error.strerror}"
        ) from None


@contextmanager
def _folder_of(name: str, text: str) -> Iterator[Path]:
    """Yield a temporary folder with a single file."""
    with TemporaryDirectory(prefix="onnxserve-signature-") as folder:
        Path(folder, name).write_text(text, encoding="utf-8")
        yield Path(folder)


@dataclass(frozen=True)
class Signature:
    """The content of a bundle, and the key or authority that must have signed it."""

    bundle: bytes
    trust: Trust

    @property
    def marks(self) -> tuple[str, str]:
        """The digests of both, which change with a new signature or key."""
        return sha256(self.bundle).hexdigest(), sha256(self.trust.pem).hexdigest()

    @property
    def signed_as(self) -> str:
        """The URI models:/NAME/VERSION with which the files were signed; empty if there
        is none. The bundle must have passed `check`.
        """
        (subject,) = _statement(orjson.loads(self.bundle))["subject"]
        return str(subject.get("annotations", {}).get(_MODEL_URI, ""))

    def check_text(self, name: str, text: str) -> None:
        """Raise the errors of `check` for the single file of `Signer.sign_text`."""
        with _folder_of(name, text) as folder:
            self.check(folder)

    def check(self, folder: Path) -> None:
        """Raise SignatureRefused unless the bundle is by the trusted key or authority,
        and covers exactly the files in the folder, and NotInstalled.
        """
        unusable = f"{self.trust.name} has no elliptic-curve key or certificate in PEM"
        refused = f"its signature {BUNDLE} is refused with {self.trust.name}"
        with TemporaryDirectory(prefix="onnxserve-signature-") as temporary:
            file = Path(temporary, BUNDLE)
            file.write_bytes(self.bundle)
            with _library_errors(unusable):
                verifier = self.trust.verifier(Path(temporary))
            with _library_errors(refused):
                verifier.set_hashing_config(_hashing()).verify(folder, file)
        # The library has verified the document before it is read here.
        with _library_errors(refused):
            document = orjson.loads(self.bundle)
            ignored = _statement(document)["predicate"]["serialization"].get("ignore_paths", ())
            # The library also ignores the content of a folder.
            unsigned = [name for name in UNSIGNED if not (folder / name).is_dir()]
            uncovered = {*UNSIGNED, *ignored}.difference(unsigned)
            present = sorted(name for name in uncovered if (folder / name).exists())
            if present:
                raise SignatureRefused(f"the signature does not cover {', '.join(present)}")
            if self.trust.is_authority:
                _check_validity(document, self.trust.pem)


def read_bundle(file: Path) -> bytes:
    """Return the content of a bundle. Raises SignatureRefused if it is too large."""
    with file.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise SignatureRefused(f"its signature {BUNDLE} has more than {_MOST_BYTES:,} bytes")
    return content


def _hashing() -> "hashing.Config":
    from model_signing import hashing  # The extra `signing`.

    config = hashing.Config()  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)


def _statement(document: Mapping[str, Any]) -> Any:
    """Return the in-toto statement in the document of a bundle."""
    return orjson.loads(b64decode(document["dsseEnvelope"]["payload"]))


def _check_validity(document: Mapping[str, Any], authorities: bytes) -> None:
    """Raise an error of OpenSSL unless all certificates are valid now. The library
    checks them for the start of the signing certificate's validity.
    """
    from cryptography import x509
    from OpenSSL import crypto

    material = document["verificationMaterial"]["x509CertificateChain"]["certificates"]
    certificate, *chain = [
        crypto.X509.from_cryptography(x509.load_der_x509_certificate(b64decode(item["rawBytes"])))
        for item in material
    ]
    store = crypto.X509Store()
    for authority in x509.load_pem_x509_certificates(authorities):
        store.add_cert(crypto.X509.from_cryptography(authority))
    crypto.X509StoreContext(store, certificate, chain).verify_certificate()


@contextmanager
def _library_errors(
    what: str,
    error_class: type[OnnxserveError] = SignatureRefused,
) -> Iterator[None]:
    """Convert the errors of model_signing, and of the libraries below it, which have
    many classes.
    """
    try:
        yield
    except OnnxserveError:
        raise
    except ImportError as error:
        raise NotInstalled(
            f"signatures need a package that is not installed ({error.name}): pip install "
            "'mlflow-onnxserve[signing]'"
        ) from None
    except BaseException as error:  # noqa: BLE001 - the libraries in Rust raise PanicException
        pass_exit(error)
        reason = _PIN.sub("pin-value=…", one_line(error))
        raise error_class(f"{what}: {reason}") from None
