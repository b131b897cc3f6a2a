"""Triton's extensions of V2 over HTTP: the model repository, statistics, configuration.

A load and an unload change what is served, and nobody who asks for them proves who he is. What a browser sends for a
page of elsewhere is refused all the same: such a page reaches this server where its reader does, on his own machine or
behind his firewall. It is known by `Origin` and `Sec-Fetch-Site`, which no page can leave out or change; by a
`Content-Type` that a browser sends without asking first
(https://fetch.spec.whatwg.org/#cors-safelisted-request-header); or, where the page's own
name leads to this server for the moment (DNS rebinding), by that name in `Host`. An address there is nobody's to lead.
"""

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress

from mlflow_deploy_plugin.errors import CallerRefused
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.protocols import v2_extensions
from mlflow_deploy_plugin.server.protocols.content import JSON, dump_json, media_type
from mlflow_deploy_plugin.spec import ServerSpec

_HOST = re.compile(r"(\[.*\]|[^:]*)(:[0-9]*)?")


def refuse_cross_site(view: Callable[..., RawResponse]) -> Callable[..., RawResponse]:
    """The view, for HTTP: it changes what is served. gRPC needs no such check, since no browser speaks it."""

    def checked(server: Server, request: RawRequest, **named: str) -> RawResponse:
        check_same_site(request, server.spec)
        return view(server, request, **named)

    return checked


def check_same_site(request: RawRequest, spec: ServerSpec) -> None:
    """
    Raises:
        UnsupportedMediaType: a Content-Type other than JSON; none is taken, since Triton's client sends none.
        CallerRefused: a web page of elsewhere asks, or may ask.
    """
    if "content-type" in request.headers:
        media_type(request.headers["content-type"], (JSON,))
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not _is_ours(host, spec):
        raise CallerRefused(
            f"the Host {host[:100]!r} is not known to be this server's: ask for its address or localhost, or name it "
            "in server.allowed_hosts (-C server.allowed_hosts=NAME)"
        )
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise CallerRefused(f"a web page of {origin[:100]!r} may not change what is served here")
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise CallerRefused("a web page of elsewhere may not change what is served here")


def _is_ours(host: str, spec: ServerSpec) -> bool:
    match = _HOST.fullmatch(host.lower())
    name = match[1].strip("[]").removesuffix(".") if match else ""
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return name in ("localhost", spec.host.lower(), *spec.allowed_hosts)


def index(server: Server, request: RawRequest) -> RawResponse:
    only_ready = v2_extensions.decode_index(request.body)
    return RawResponse(200, dump_json(v2_extensions.repository_index(server.repository, only_ready)))


def load(server: Server, request: RawRequest, endpoint: str) -> RawResponse:
    """Answered once every worker serves the endpoint; holds its thread until then."""
    parameters = v2_extensions.decode_parameters(request.body)
    server.model_control.load(endpoint, v2_extensions.endpoint_to_load(endpoint, parameters))
    return RawResponse(200, b"")


def unload(server: Server, request: RawRequest, endpoint: str) -> RawResponse:
    """Answered once no worker serves the endpoint any more; holds its thread until then."""
    v2_extensions.check_unload_parameters(v2_extensions.decode_parameters(request.body))
    server.model_control.unload(endpoint)
    return RawResponse(200, b"")


def stats(server: Server, request: RawRequest, endpoint: str | None = None, version: str | None = None) -> RawResponse:
    counted = server.metrics.statistics()
    return RawResponse(200, dump_json(v2_extensions.statistics(server.repository, counted, endpoint, version)))


def config(server: Server, request: RawRequest, endpoint: str, version: str | None) -> RawResponse:
    variant = server.dataplane.select_variant(endpoint, version)
    versions = server.repository.versions(endpoint)
    return RawResponse(200, dump_json(v2_extensions.model_config(variant, versions, server.spec)))
