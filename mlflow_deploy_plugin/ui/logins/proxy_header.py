"""The adapter of a proxy that logs callers in and passes their names in a header, such
as X-Forwarded-User.

The header is accepted only from the listed addresses. All other requests are refused,
except health checks. MLflow has no permissions in this case, so every named caller may
read all models. Every named caller may also edit all models, unless
ONNXSERVE_EDIT_GROUPS names the groups of the editors.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from flask import Flask, Response, g, request
from itsdangerous import BadData, URLSafeTimedSerializer

from mlflow_deploy_plugin.core.errors import InvalidConfig, Refused, Unauthenticated
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.people import name_refusal
from mlflow_deploy_plugin.ui.access import refusal
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission

if TYPE_CHECKING:
    from fastapi import FastAPI

_JOB_SECONDS = 2 * 3600  # A job runs for an hour at most.
_READING_METHODS = ("GET", "HEAD", "OPTIONS")
_READING_POSTS = re.compile(
    r"/graphql|/(?:ajax-)?api/\d\.0/mlflow/(?:"
    r"(?:experiments|runs|traces|logged-models|issues|datasets|prompt-optimization/jobs)/search"
    r"|experiments/search-datasets|registered-models/get-latest-versions|artifacts/presigned-download-url"
    r"|traces/(?:metrics|batchGetInfos|calculate-filter-correlation))"
)
"""The paths of MLflow that only read, although their method is POST."""
_OWN_PAGES = re.compile(r"/onnxserve(?:/requests)?")
"""The pages of onnxserve that accept forms and decisions. They check the permissions of
the caller.
"""


class _Identity(NamedTuple):
    user: str
    groups: frozenset[str]


class ProxyHeader(Login):
    """Raises InvalidConfig if the settings list no addresses. A token of this server
    names the caller of a job.
    """

    counts_failures = False

    def __init__(self, settings: Settings, prefix: str) -> None:
        self._header = settings.user_header
        self._groups_header = settings.groups_header
        self._administrators = frozenset(_split_entries(settings.admin_groups))
        self._editors = frozenset(_split_entries(settings.edit_groups))
        self._prefix = prefix
        self._open = (f"{prefix}/health", f"{prefix}/version")
        try:
            self._proxies = [
                ip_network(entry) for entry in _split_entries(settings.trusted_proxies)
            ]
        except ValueError as error:
            raise InvalidConfig(f"ONNXSERVE_TRUSTED_PROXIES: {error}") from None
        if self._editors and not self._groups_header:
            raise InvalidConfig(
                "ONNXSERVE_EDIT_GROUPS needs ONNXSERVE_GROUPS_HEADER, the header in which the "
                "proxy sends the groups"
            )
        if not self._proxies:
            raise InvalidConfig(
                "ONNXSERVE_USER_HEADER needs ONNXSERVE_TRUSTED_PROXIES, the addresses of the "
                "proxies that set the header, such as 10.0.0.7 or 10.1.0.0/16"
            )

    def install(self, app: Flask, served: "Flask | FastAPI") -> None:
        self._tokens = URLSafeTimedSerializer(app.secret_key or "", salt="onnxserve job")
        app.before_request_funcs.setdefault(None, []).insert(0, self.refusal)

    def is_open(self, path: str) -> bool:
        return path in self._open

    def user(self) -> str:
        return str(g.onnxserve_identity.user)

    def is_administrator(self) -> bool:
        return bool(self._administrators & self.groups())

    def groups(self) -> frozenset[str]:
        groups: frozenset[str] = g.onnxserve_identity.groups
        return groups

    def permission(self, model: str) -> ModelPermission:
        return ModelPermission(can_read=True, can_update=self._may_edit(self.groups()))

    def credentials(self) -> dict[str, str]:
        token = self._tokens.dumps(
            [
                self.user(),
                sorted(self.groups()),
            ]
        )
        return {"MLFLOW_TRACKING_TOKEN": token}

    def refusal(self) -> Response | None:
        """Keep the identity of the caller for this request. Return a refusal, or None
        if the request may pass.
        """
        if self.is_open(request.path):
            return None
        identity = self._identify(request.headers.get, request.remote_addr or "")
        names = {name.lower().encode() for name in (self._header, self._groups_header) if name}
        raw = request.environ.get("asgi.scope", {"headers": ()})["headers"]
        sent = [name for name, _ in raw if name in names]
        if len(sent) != len(set(sent)):
            identity = Refused("the request has several headers with the caller's name or groups")
        if isinstance(identity, Refused):
            return refusal(Unauthenticated.error_code, identity.reason, 401)
        g.onnxserve_identity = identity
        if reason := self._refusal_of_change(request.method, request.path, identity):
            return refusal("PERMISSION_DENIED", reason, 403)
        if request.headers.get("X-Forwarded-Proto") == "https":
            # uvicorn reads this header only from the addresses in FORWARDED_ALLOW_IPS.
            request.scheme = "https"
        return None

    def _may_edit(self, groups: frozenset[str]) -> bool:
        return not self._editors or bool((self._editors | self._administrators) & groups)

    def _refusal_of_change(self, method: str, path: str, identity: _Identity) -> str:
        """Return why the caller may not send this request to MLflow; empty if the
        caller may send it.
        """
        within = path.removeprefix(self._prefix)
        is_reading = method == "POST" and (
            _READING_POSTS.fullmatch(within) or _OWN_PAGES.fullmatch(within)
        )
        if method in _READING_METHODS or is_reading or self._may_edit(identity.groups):
            return ""
        return (
            f"{identity.user} may only read: changes need a group in ONNXSERVE_EDIT_GROUPS of "
            "MLflow's server"
        )

    def _identify(
        self,
        header: "Callable[[str, str], str]",
        address: str,
    ) -> _Identity | Refused:
        """Return the name and the groups of the caller, from the token of a job or from
        the headers of a proxy.
        """
        scheme, _, token = header("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            with suppress(BadData):  # The proxy passes the token of its own login.
                user, groups = self._tokens.loads(token, max_age=_JOB_SECONDS)
                return _Identity(user, frozenset(groups))
        try:
            parsed: IPv4Address | IPv6Address | None = ip_address(address)
        except ValueError:  # A Unix socket has no address.
            parsed = None
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
            parsed = parsed.ipv4_mapped
        if parsed is None or not any(parsed in network for network in self._proxies):
            shown = address or "the address"
            return Refused(
                f"{shown} is not in ONNXSERVE_TRUSTED_PROXIES: send requests to the proxy"
            )
        user = _decode_header(header(self._header, "")).strip()
        if not user or "," in user:
            names = "several names" if user else "no name"
            return Refused(f"the proxy at {address} sent {names} in {self._header}")
        if reason := name_refusal(user):
            return Refused(
                f"the proxy at {address} sent an unusable name in {self._header}: {reason}"
            )
        groups = _decode_header(header(self._groups_header, ""))
        return _Identity(user, frozenset(_split_entries(groups)))


def _decode_header(header: str) -> str:
    """Return a header, which servers decode as Latin-1, as UTF-8, which proxies send;
    otherwise as Latin-1.
    """
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _split_entries(text: str) -> list[str]:
    entries = [part.strip() for part in text.split(",")]
    return [entry for entry in entries if entry]
