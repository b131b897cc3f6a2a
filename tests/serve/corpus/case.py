"""Bad requests: their routes, their bytes, and the responses
that the server must send.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlflow_deploy_plugin.serve.http.parser import decode_path
from mlflow_deploy_plugin.serve.messages import RawRequest

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Route:
    """A route of the corpus server, in one of its protocols.

    Attributes:
        reads: the language of its bodies, as in `routes.LANGUAGES`; empty if the route
            has no body.
        good: a valid body; its response contains `right`.
        status: the status for the valid body; not 200 if the route must not change
            anything.
    """

    method: str
    path: str
    reads: str = ""
    good: bytes = b""
    right: bytes = b""
    headers: Headers = field(default_factory=dict)
    status: int = 200

    @property
    def name(self):
        return f"{self.method} {self.path} {self.reads}".strip()

    @property
    def has_short_errors(self):
        """True if its errors have the form of V2 and TensorFlow instead of MLflow's."""
        return self.path == "/v2" or self.path.startswith(("/v2/", "/v1/models/"))

    def request(
        self,
        body=None,
        headers=None,
        method="",
        path="",
    ):
        """Return a request to this route. By default, all parts are valid.

        Args:
            headers: added to or replacing the route's headers; an empty header is left
                out.
            path: another target, with escapes.
        """
        fields = {"Host": "x", **self.headers, **(headers or {})}
        sent = {name.lower(): value for name, value in fields.items() if value}
        content = self.good if body is None else body
        return RawRequest(method or self.method, decode_path(path or self.path), sent, content)


@dataclass(frozen=True)
class Case:
    """A bad request, which is sent to every route of `on`.

    Attributes:
        sent: a function that returns the request for a route.
        status: the expected status.
        words: texts that the message must contain.
        has_any_form: True if the error may have the form of another protocol, because
            the path is another one.
    """

    name: str
    sent: Callable[[Route], RawRequest]
    on: tuple[Route, ...]
    status: int = 400
    words: tuple[str, ...] = ()
    has_any_form: bool = False


def body_case(
    name,
    body,
    on,
    status=400,
    words=(),
    headers=None,
):
    """Return the case of a bad body.

    Args:
        body: a function that returns the bytes for a route.
        headers: added to or replacing the route's headers; an empty header is left out.
    """
    return Case(name, lambda route: route.request(body(route), headers), on, status, words)


def always(body):
    return lambda route: body


def body_cases(
    on,
    bodies,
    status=400,
    words=(),
    headers=None,
):
    """Return the cases of bad bodies, which are bytes or functions of the route.

    A tuple of a body and texts adds texts that the message must contain.
    """
    cases = []
    for name, given in bodies.items():
        body, *more = given if isinstance(given, tuple) else (given,)
        build = body if callable(body) else always(body)
        cases.append(body_case(name, build, on, status, (*words, *more), headers))
    return cases
