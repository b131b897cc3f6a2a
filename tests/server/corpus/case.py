"""Bad requests: their route, their bytes, and the response that they have to get."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Route:
    """One route of the server of the corpus, in one of the protocols that it reads.

    Attributes:
        reads: the language of its bodies, as in `routes.LANGUAGES`; empty: it takes none.
        good: a body that is right; `right` stands in the answer to it.
        status: of the right answer; not 200 where nothing may be changed.
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
        """True if its errors have the form of V2 and TensorFlow, not that of MLflow."""
        return self.path == "/v2" or self.path.startswith(("/v2/", "/v1/models/"))

    def request(
        self,
        body: bytes | None = None,
        headers: Headers | None = None,
        method: str | None = None,
        path: str | None = None,
        length: int | None = None,
    ) -> bytes:
        """Return a request to this route as bytes. Parts that are not given are those of the good request.

        Args:
            headers: beside or instead of the route's own; an empty one is left out.
            length: of the body, as the head has it; None: what it is, -1: not said.
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
    """One bad request, which is sent to every route of `on`.

    Attributes:
        bound: the entry of `bounds.BOUNDS` that refuses it.
        sent: the bytes for a route.
        status: that is answered.
        words: that the message has.
        closes: the connection ends behind the answer, since nobody knows where the next request would begin.
        form: of the error; any: of another path than the route's.
    """

    name: str
    bound: str
    sent: Callable[[Route], bytes]
    status: int
    on: tuple[Route, ...]
    words: tuple[str, ...] = ()
    closes: bool = False
    form: Literal["route", "any"] = "route"


@dataclass(frozen=True)
class BodyCase:
    """One bad body (with headers that belong to it), which is sent to every route of `on`; the connection goes on.

    Attributes:
        body: the bytes for a route.
        headers: beside or instead of the route's own; an empty one is left out.
    """

    name: str
    bound: str
    body: Callable[[Route], bytes]
    on: tuple[Route, ...]
    status: int = 400
    words: tuple[str, ...] = ()
    headers: Headers = field(default_factory=dict)
    closes: bool = False
    form: Literal["route", "any"] = "route"

    def sent(self, route: Route) -> bytes:
        return route.request(self.body(route), self.headers)


AnyCase = Case | BodyCase
