"""Flask's part of the HTTP surface: a blueprint with every route that is no prediction and no health check.

Both workers reach it, and the blueprints of other distributions, which name them in the entry-point group
`onnxserve.blueprints`. A view of theirs finds the server as `current_app.server`.
"""

import logging
import re
from collections.abc import Iterator
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from flask import Blueprint, Flask, Response, current_app, g
from werkzeug.routing import BaseConverter

from mlflow_deploy_plugin.server.http.messages import RawResponse
from mlflow_deploy_plugin.server.http.negotiation import decode_body, encode_body
from mlflow_deploy_plugin.server.http.routes import ROUTES, Route, name_placeholders
from mlflow_deploy_plugin.server.inference.messages import safe_headers

logger = logging.getLogger(__name__)

GROUP = "onnxserve.blueprints"


class NameConverter(BaseConverter):
    """A part of a path of TensorFlow Serving, where a colon ends a name."""

    regex = "[^/:]+"


def register_blueprints(app: Flask) -> None:
    """Register our routes, then the blueprints of other distributions. One that cannot be loaded is logged."""
    app.url_map.converters["name"] = NameConverter
    app.url_map.merge_slashes = False
    blueprint = Blueprint("onnxserve", __name__)
    for number, route in enumerate(ROUTES):
        if not route.is_direct:
            rules = list(flask_rules(route.path))
            view = partial(_view, route, dict.fromkeys(re.findall(r"<(?:name:)?(\w+)>", "".join(rules))))
            for rule in rules:
                blueprint.add_url_rule(
                    rule, f"route-{number}", view, methods=[route.method], provide_automatic_options=False
                )
    app.register_blueprint(blueprint)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            app.register_blueprint(entry.load())
        except Exception:
            logger.exception("the blueprint %s (%s) cannot be used", entry.name, entry.value)


def flask_rules(path: str) -> Iterator[str]:
    """Yield the rules of Flask for a path of `ROUTES`: one for each way to choose among its parts in brackets."""
    head, bracket, rest = path.partition("[")
    if bracket:
        options, _, tail = rest.partition("]")
        for part in ("", *options.split("|")):
            yield from flask_rules(head + part + tail)
        return
    yield name_placeholders(path, "<name:{}>" if path.startswith("/v1/") else "<{}>")


def _view(route: Route, keywords: dict[str, None], **named: str) -> Response:
    """Call the view of a route. A keyword that the path leaves out is None."""
    server: Any = current_app.server  # type: ignore[attr-defined]
    request = decode_body(g.raw_request, server.max_body_bytes)
    return flask_response(encode_body(request, route.view(server, request, **(keywords | named))))


def flask_response(response: RawResponse) -> Response:
    """Return our response as Flask's."""
    flask = Response(response.body, response.status, safe_headers(response.headers), content_type=response.content_type)
    if response.status == 204:
        del flask.headers["Content-Type"]
    return flask
