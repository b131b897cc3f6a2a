"""The certificates of a server, which are replaced while it runs (cert-manager, certbot, a Secret of Kubernetes).

Each handshake looks at the files. So new connections take a renewed certificate, and the authorities of now.
"""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.statedir import file_identity

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")


def open_tls(certfile: str, keyfile: str, ca_certs: str | None) -> ssl.SSLContext:
    """Return the context of a server; with authorities it verifies the certificates of clients that send one.

    Raises:
        InvalidConfig: a file cannot be read, or they do not go together.
    """
    try:
        for file in filter(None, (certfile, keyfile, ca_certs)):
            Path(file).read_bytes()  # OpenSSL does not say which of them it misses
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_certs)
        context.load_cert_chain(certfile, keyfile, password="")  # without one OpenSSL would ask the terminal
    except ssl.SSLError as error:
        found = (error.reason or "").replace("_", " ").lower()  # empty for what is no PEM, and for a wrong password
        reason = found or "a certificate and a key without a password in PEM are expected"
        files = f"server.certfile {certfile} with server.keyfile {keyfile}"
        files += f" and server.ca_certs {ca_certs}" if ca_certs else ""
        raise InvalidConfig(f"TLS cannot use {files}: {reason}") from None
    except OSError as error:
        raise InvalidConfig(f"TLS cannot read {error.filename}: {error.strerror}") from None
    context.verify_mode = ssl.CERT_OPTIONAL if ca_certs else ssl.CERT_NONE
    return context


class CertificateFiles(Generic[_Made]):
    """An object that TLS makes of a server's files, and makes anew when one of them has been replaced.

    Files that cannot be used leave what was made before: a certificate may be replaced a moment before its key.

    Args:
        make: reads certfile, keyfile and ca_certs; raises InvalidConfig.
    """

    def __init__(
        self, certfile: str, keyfile: str, ca_certs: str | None, make: Callable[[str, str, str | None], _Made]
    ) -> None:
        self._files = certfile, keyfile, ca_certs
        self._make = make
        self._identities = self._identify()
        self._made = make(*self._files)

    def look(self) -> _Made:
        """Return what is made of the files as they are now."""
        identities = self._identify()
        if identities != self._identities:
            self._identities = identities
            try:
                self._made = self._make(*self._files)
                _log.info("the files of TLS were replaced: new connections use %s", self._files[0])
            except InvalidConfig as error:
                _log.error("the files of TLS were replaced, and those of before go on: %s", error.message)
        return self._made

    def _identify(self) -> list[tuple[int, int, int] | None]:
        return [file_identity(Path(file)) for file in self._files if file is not None]


def open_following_tls(certfile: str, keyfile: str, ca_certs: str | None) -> ssl.SSLContext:
    """Return a context for a listener, each connection of which takes the files as they are then. Raises as `open_tls`.

    The callback is there for the server's name, and is also called for clients that send none.
    """
    files = CertificateFiles(certfile, keyfile, ca_certs, open_tls)

    def switch(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = files.look()

    listening = files.look()
    listening.sni_callback = switch
    return listening
