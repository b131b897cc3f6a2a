"""The TLS certificates of a server. Handshakes look for changed files, so that a
renewal does not need a restart.
"""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import file_identity

if TYPE_CHECKING:
    from gunicorn.config import Config

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")


def open_tls(certfile: str, keyfile: str, ca_certs: str | None) -> ssl.SSLContext:
    """Return the TLS context of a server. With `ca_certs`, a certificate that a client
    sends is verified.

    Raises InvalidConfig if a file cannot be read or the files do not match.
    """
    try:
        for file in filter(None, (certfile, keyfile, ca_certs)):
            Path(file).read_bytes()  # The OSError has the file name, which OpenSSL's error omits.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_certs)
        # Without a password, OpenSSL would prompt for it.
        context.load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        # empty if no PEM, or a wrong password
        openssl_reason = (error.reason or "").replace("_", " ").lower()
        reason = openssl_reason or "a certificate and a key without a password in PEM are expected"
        authorities = f" and server.ca_certs {ca_certs}" if ca_certs else ""
        files = f"server.certfile {certfile} with server.keyfile {keyfile}{authorities}"
        raise InvalidConfig(f"TLS cannot use {files}: {reason}") from None
    except OSError as error:
        raise InvalidConfig(f"TLS cannot read {error.filename}: {error.strerror}") from None
    context.verify_mode = ssl.CERT_OPTIONAL if ca_certs else ssl.CERT_NONE
    return context


def follow_files(
    make: Callable[..., _Made],
    *files: str | None,
) -> Callable[[], _Made]:
    """Return a function that calls `make` again when the files have changed, and
    returns the last result of `make`.

    If the new files are unusable, the last result is kept, because a certificate may be
    replaced before its key. If the first files are unusable, raises InvalidConfig.
    """

    def identify() -> list[object]:
        return [file_identity(Path(file)) for file in files if file is not None]

    last_identity = identify()
    result = make(*files)

    def make_if_changed() -> _Made:
        """Return the result for the current files, or the last usable result."""
        nonlocal last_identity, result
        if (identity := identify()) != last_identity:
            last_identity = identity
            try:
                result = make(*files)
                _log.info("the TLS files were replaced: new connections use %s", files[0])
            except InvalidConfig as error:
                _log.error(
                    "the new TLS files cannot be used, and the previous files remain in use: %s",
                    error.message,
                )
        return result

    return make_if_changed


def open_following_tls(config: "Config") -> ssl.SSLContext:
    """Return a TLS context for the listeners of gunicorn's configuration; a new
    connection uses the current files.
    """
    current_context = follow_files(open_tls, config.certfile, config.keyfile, config.ca_certs)

    def switch(
        connection: ssl.SSLSocket | ssl.SSLObject,
        name: str | None,
        context: ssl.SSLContext,
    ) -> None:
        """Give a new connection the context of the current files."""
        connection.context = current_context()

    listening = current_context()
    listening.sni_callback = switch  # OpenSSL also calls `switch` if a client sends no server name.
    return listening
