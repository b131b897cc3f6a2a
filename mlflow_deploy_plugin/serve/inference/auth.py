"""Authentication of callers by API key, by an issuer's token or by certificate, and the
permissions of each caller.

The agent writes the SHA-256 of the valid keys (`keys.json`). A key has 256 random bits,
so a slower hash would not make it harder to guess. Clients send a key as Bearer (RFC
6750), and browsers send it as the password of Basic (RFC 7617).

A token is a JWT (RFC 7519) of an OpenID Connect issuer. Its claim `scope` (RFC 9068)
contains infer, read and admin, and its optional claim `onnxserve_endpoints` lists the
endpoints. The agent fetches the issuer's public keys (`jwks.json`), so that no worker
waits for the issuer. A token's signature is verified only once (100 µs).

With `server.ca_certs`, all routes except health checks need a verified client
certificate, in addition to the key. On a server without keys, the certificate is
sufficient. Commands on this machine use the local key.
"""

import base64
import binascii
import hashlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from mlflow_deploy_plugin.core.errors import NotReady, ScopeMissing, Unauthenticated, pass_exit
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import (
    JWKS,
    KEYS,
    LOCAL_KEY,
    file_identity,
    read_state,
)
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, Scope, ValidKeys
from mlflow_deploy_plugin.serve.messages import RawRequest

logger = logging.getLogger(__name__)

CREDENTIALS = re.compile(
    "authorization|cookie|token|secret|passw|credential|assertion|jwt|oidc|client-cert|"
    "(api|access|auth|functions|subscription)[-_]?key"
)
"""The names of headers and metadata that may identify a caller to this server or to a
proxy. They are never passed on.
"""
Need = Scope | Literal["describe"]
"""A scope, or `describe` (the metadata and readiness of a model), for which either
`infer` or `read` is sufficient.
"""
_DESCRIBERS: tuple[Scope, ...] = "infer", "read"

_LOOK_SECONDS = 1.0
_LOCAL = KeyEntry(name="this machine", scopes=get_args(Scope))
_MAX_KNOWN = 10_000
_MAX_KNOWN_CHARACTERS = 200
UNNAMED = "a certificate without a name"
_LONGEST_NAME = 100
_LEEWAY_SECONDS = 30.0
_MOST_SECONDS = 2**53
_ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]
"""Public-key signature algorithms; with `none` or a symmetric algorithm, callers could
forge tokens.
"""
_NO_CERTIFICATE = "this server requires a client certificate of one of its authorities"
_HOW = "send Authorization: Bearer KEY; `onnxserve keys create` creates a key"
UNKNOWN_KEY = f"the key in Authorization is unknown, expired or revoked; {_HOW}"


class Authenticator:
    """The authentication of a worker's callers.

    Args:
        count: a function that counts a request of a key.
        count_refused: a function that counts a request without a valid key, by reason.
        clock: the seconds since 1970, with which the expiry of keys is checked.
        monotonic: the clock for checking the key files; a wall clock that is set back
            would keep revoked keys valid.

    Attributes:
        is_required: if False, no key is needed, and `require` must not be called.
    """

    def __init__(
        self,
        state_dir: Path,
        spec: ServerSpec,
        count: Callable[[KeyEntry], None] = lambda key: None,
        count_refused: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_required = spec.authenticates
        self.count = count
        self._count_refused = count_refused
        self._state_dir = state_dir
        self._issuer = spec.jwt_issuer
        self._audience = spec.jwt_audience
        self._needs_certificate = spec.ca_certs is not None
        self._takes_keys = spec.takes_keys
        self._clock = clock
        self._monotonic = monotonic
        self._from_agent: Mapping[str, KeyEntry] = {}
        self._keys: Mapping[str, KeyEntry] = {}
        # The results of `_short` are the index.
        self._known: OrderedDict[str | bytes, KeyEntry] = OrderedDict()
        self._jwks: Any = None
        self._files: list[tuple[int, int, int] | None] = []
        self._look_at = 0.0

    def identify(
        self, request: RawRequest, need: Need, endpoint: str | None = None
    ) -> KeyEntry | None:
        """Count the request and return the caller's key, or None if no key is needed.

        Raises the errors of `require`.
        """
        if not self.is_required:
            return None
        try:
            key = self.require(request.headers, need, endpoint, request.caller)
        except Unauthenticated:
            self._count_refused("wrong_key" if "authorization" in request.headers else "no_key")
            raise
        request.caller = key.name
        self.count(key)
        return key

    def require(
        self,
        headers: Mapping[str, str],
        need: Need,
        endpoint: str | None = None,
        certificate: str = "",
    ) -> KeyEntry:
        """Return the caller's key if it permits the request. `endpoint` is None for a
        request about the server.

        Raises the errors of `find`, and ScopeMissing if the key does not permit the
        request.
        """
        entry = self.find(headers, certificate)
        require_scope(entry, need, endpoint)
        return entry

    def is_stranger(self, headers: Mapping[str, str], certificate: str = "") -> bool:
        """Return True if the caller needs a valid key and has none; the body of the
        request need not be read then.
        """
        try:
            if self.is_required:
                self.find(headers, certificate)
        except (Unauthenticated, NotReady):
            return True
        return False

    def find(self, headers: Mapping[str, str], certificate: str = "") -> KeyEntry:
        """Return the caller's key, regardless of its permissions.

        Args:
            headers: the headers with names in lower case, or the metadata of gRPC.
            certificate: the name in the client's verified certificate; empty without a
                certificate.

        Raises:
            Unauthenticated: the key is missing or not valid.
            NotReady: the caller has a token, and the issuer's keys have not been
                fetched yet.
        """
        if certificate and not self._takes_keys:
            return _of_certificate(certificate)
        authorization = headers.get("authorization", "")
        if self._needs_certificate and not (certificate or authorization):
            raise Unauthenticated(_NO_CERTIFICATE)
        now = self._monotonic()
        if now >= self._look_at:
            self._read_keys()
            # Set this after reading, so that no thread skips new keys.
            self._look_at = now + _LOOK_SECONDS
        cache = self._known
        sent = _short(authorization)
        entry = cache.get(sent)
        if entry is None:
            key = sent_key(headers)
            entry = self._keys.get(hashlib.sha256(key).hexdigest())
            if entry is None and self._issuer is not None and key.count(b".") == 2:
                entry = _token_entry(self._verify(key), self._issuer)
            if entry is None:
                raise Unauthenticated(UNKNOWN_KEY if self._takes_keys else _NO_CERTIFICATE)
            cache[sent] = entry
            while len(cache) > _MAX_KNOWN:
                cache.popitem(last=False)
        if self._needs_certificate and not certificate and entry is not _LOCAL:
            raise Unauthenticated(_NO_CERTIFICATE)
        if entry.expires_at is not None and entry.expires_at <= self._clock():
            raise Unauthenticated(f"the key {entry.name!r} has expired; {_HOW}")
        return entry

    def known(self, request: RawRequest) -> KeyEntry | None:
        """Return the caller's key if an earlier request has used it. The key may have
        been revoked since.
        """
        if request.caller and not self._takes_keys:
            return _of_certificate(request.caller)
        return self._known.get(_short(request.headers.get("authorization", "")))

    def _read_keys(self) -> None:
        """Read the key files if they have changed. If keys.json cannot be read, the
        last keys remain valid.
        """
        keys_file = self._state_dir / KEYS
        local_key = self._state_dir / LOCAL_KEY
        issuer_keys = self._state_dir / JWKS
        files = [file_identity(path) for path in (keys_file, local_key, issuer_keys)]
        if files == self._files:
            return
        valid = read_state(keys_file, ValidKeys)
        if valid is not None:
            self._from_agent = valid.keys
        elif keys_file.is_file():
            logger.error("%s cannot be read; the last keys remain valid", keys_file)
        else:
            self._from_agent = {}
        keys = dict(self._from_agent)
        if local_key.is_file():
            keys[hashlib.sha256(local_key.read_bytes()).hexdigest()] = _LOCAL
        if self._issuer is not None and issuer_keys.is_file():
            from jwt import PyJWKSet

            # The agent has validated the file.
            self._jwks = PyJWKSet.from_json(issuer_keys.read_text())
        self._keys = keys
        self._files = files
        self._known = OrderedDict()  # Replace the dictionary: a thread may be adding a key to it.

    def _verify(self, token: bytes) -> Mapping[str, Any]:
        """Return the claims of a token.

        Raises Unauthenticated if the token's issuer, audience or time is wrong, and
        NotReady without the issuer's keys.
        """
        import jwt

        if self._jwks is None:
            raise NotReady(
                f"the keys of {self._issuer} have not been fetched yet; retry in a moment"
            )
        try:
            keys = {key.key_id: key for key in self._jwks.keys}
            name = jwt.get_unverified_header(token).get("kid")
            if name not in keys:
                raise Unauthenticated(
                    f"{self._issuer} has no key {str(name)[:60]!r}, with which the token is signed"
                )
            claims: Mapping[str, Any] = jwt.decode(
                token,
                keys[name].key,
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (
            jwt.InvalidKeyError,
            TypeError,
        ):  # The message omits these errors, which contain a memory address.
            raise Unauthenticated("the token is not valid: its key is of another kind") from None
        except (jwt.PyJWTError, ValueError, OverflowError) as error:
            reason = str(error)[:200] or type(error).__name__
            raise Unauthenticated(
                f"the token is not valid: {reason[:1].lower()}{reason[1:]}"
            ) from None
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of cryptography; the caller may be the event loop
            pass_exit(error)
            raise Unauthenticated(f"the token is not valid: {type(error).__name__}") from None
        # PyJWT also accepts booleans, strings of digits, and integers that are too
        # large for a float.
        for name in ("exp", "nbf", "iat"):
            seconds = claims.get(name, 0)
            if not (type(seconds) in (int, float) and abs(seconds) < _MOST_SECONDS):
                raise Unauthenticated(
                    "the token is not valid: its exp, nbf and iat are not all numbers of seconds"
                )
        return claims


def _token_entry(claims: Mapping[str, Any], issuer: str) -> KeyEntry:
    """Return the permissions that a token's claims grant; none for an empty list of
    endpoints. Raises Unauthenticated if the claims are malformed.
    """
    granted = claims.get("scope") or claims.get("scp") or ""
    words = granted.split() if isinstance(granted, str) else granted
    endpoints = claims.get("onnxserve_endpoints")
    subject = claims.get("sub") or claims.get("client_id") or ""
    if not (isinstance(words, list) and isinstance(endpoints, list | None)):
        raise Unauthenticated(
            "the token's claims scope and onnxserve_endpoints are not lists of names"
        )
    if endpoints == []:
        words = []
    return KeyEntry(
        # The name contains the issuer, because a bare subject could equal the name of a
        # key.
        name=f"{one_line(subject, 100)}@{urlsplit(issuer).hostname}",
        scopes=tuple(scope for scope in _LOCAL.scopes if scope in words),
        endpoints=tuple(map(str, endpoints or ())),
        expires_at=float(claims["exp"]) + _LEEWAY_SECONDS,
        counted_as="a token",
    )


def require_scope(key: KeyEntry, need: Need, endpoint: str | None) -> None:
    """Raise ScopeMissing if the key does not permit a request that needs `need`.
    `endpoint` is None for a request about the server.
    """
    if need not in key.scopes and not any(scope in key.scopes for scope in scopes_for(need)):
        scopes = ", ".join(key.scopes) or "nothing here"
        raise ScopeMissing(
            f"the key {key.name!r} is for {scopes}; this needs {' or '.join(scopes_for(need))}"
        )
    if key.endpoints and (endpoint is None or endpoint not in key.endpoints):
        target = "the whole server" if endpoint is None else f"endpoint {endpoint[:100]!r}"
        raise ScopeMissing(
            f"the key {key.name!r} is for {', '.join(key.endpoints)}; this is about {target}"
        )


def sent_key(headers: Mapping[str, str]) -> bytes:
    """Return the key or token in the header Authorization, whose name is in lower case.
    Raises Unauthenticated if there is none.
    """
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip().encode("utf-8", "surrogateescape")
        case "basic":
            try:
                password = base64.b64decode(credentials.strip(), validate=True)
            except (binascii.Error, ValueError):
                raise Unauthenticated(
                    f"the Basic password in Authorization cannot be read; {_HOW}"
                ) from None
            return password.partition(b":")[2]
        case "":
            raise Unauthenticated(f"this server requires a key; {_HOW}")
        case _:  # The header may be a key: omit it.
            raise Unauthenticated(f"Authorization is neither Bearer nor Basic; {_HOW}")


def scopes_for(need: Need) -> tuple[Scope, ...]:
    """Return the scopes of which the caller needs at least one."""
    return _DESCRIBERS if need == "describe" else (need,)


@lru_cache(1000)
def _of_certificate(name: str) -> KeyEntry:
    return KeyEntry(name=name, scopes=_LOCAL.scopes, counted_as="a certificate")


def certificate_name(certificate: Mapping[str, Any] | None) -> str:
    """Return the caller's name in `getpeercert()`, cut to 100 characters.

    The name is the common name, otherwise the first alternative name, otherwise
    `UNNAMED`. It is empty without a certificate.
    """
    if not certificate:
        return ""
    subject = dict(chain.from_iterable(certificate.get("subject", ())))
    names = [subject.get("commonName", "")]
    names += [value for _, value in certificate.get("subjectAltName", ())[:1]]
    name = next(filter(None, names), UNNAMED)
    return str(name)[:_LONGEST_NAME]


def _short(authorization: str) -> str | bytes:
    """Return the header, or its digest if the header is long; many long headers would
    fill the memory.
    """
    if len(authorization) <= _MAX_KNOWN_CHARACTERS:
        return authorization
    return hashlib.sha256(authorization.encode("utf-8", "surrogateescape")).digest()
