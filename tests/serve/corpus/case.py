"""Bad requests: their routes, their bytes, and the responses
that the server must send.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    def name(self) -> str:
        return f"{self.method} {self.path} {self.reads}".strip()

    @property
    def has_short_errors(self) -> bool:
        """True if its errors have the form of V2 and TensorFlow instead of MLflow's."""
        return self.path == "/v2" or self.path.startswith(("/v2/", "/v1/models/"))

    def request(
        self,
        body: bytes | None = None,
        headers: Headers | None = None,
        method: str | None = None,
        path: str | None = None,
        length: int | None = None,
    ) -> bytes:
        """Return a request to this route as bytes. By default, all parts are valid.

        Args:
            headers: added to or replacing the route's headers; an empty header is left
                out.
            length: the Content-Length; None for the correct length, -1 to omit the
                header.
        """
        body = self.good if body is None else body
        fields = {"Host": "x", **self.headers, **(headers or {})}
        if length != -1 and (body or length is not None or (method or self.method) == "POST"):
            fields["Content-Length"] = str(len(body) if length is None else length)
        lines = [f"{method or self.method} {path or self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items() if value]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Case:
    """A bad request, which is sent to every route of `on`.

    Attributes:
        sent: a function that returns the bytes for a route.
        status: the expected status.
        words: texts that the message must contain.
        closes: True if the connection closes, because the beginning of the next request
            is unknown.
        form: the form of the error; "any" for another path than the route's.
    """

    name: str
    sent: Callable[[Route], bytes]
    on: tuple[Route, ...]
    status: int = 400
    words: tuple[str, ...] = ()
    closes: bool = False
    form: Literal["route", "any"] = "route"


def body_case(
    name: str,
    body: Callable[[Route], bytes],
    on: tuple[Route, ...],
    status: int = 400,
    words: tuple[str, ...] = (),
    headers: Headers | None = None,
) -> Case:
    """Return the case of a bad body.

    Args:
        body: a function that returns the bytes for a route.
        headers: added to or replacing the route's headers; an empty header is left out.
    """
    return Case(name, lambda route: route.request(body(route), headers), on, status, words)


def always(body: bytes) -> Callable[[Route], bytes]:
    return lambda route: body


def body_cases(
    on: tuple[Route, ...],
    bodies: Mapping[str, Any],
    status: int = 400,
    words: tuple[str, ...] = (),
    headers: Headers | None = None,
) -> list[Case]:
    """Return the cases of bad bodies, which are bytes or functions of the route.

    A tuple of a body and texts adds texts that the message must contain.
    """
    cases = []
    for name, given in bodies.items():
        body, *more = given if isinstance(given, tuple) else (given,)
        build = body if callable(body) else always(body)
        cases.append(body_case(name, build, on, status, (*words, *more), headers))
    return cases
