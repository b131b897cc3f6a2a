"""Requests as bytes, for a socket or for the WSGI application in this process, and
their responses.
"""

import contextlib
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.inference.server import Server
from tests.serve.corpus.case import AnyCase, Route
from tests.support.handling import ask_wsgi

PATIENCE_SECONDS = 8.0
"""Seconds after which an answer counts as missing."""
_SECRETS = (
    b"Traceback",
    b'File "',
    b"site-packages",
    b"/python3",
    b".py",
    b"mlflow_deploy_plugin",
    b"onnxserve-",
)
"""Texts that must not be in the answer to a bad request, unless the request contains
them.
"""
_CODES = {404: ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"), 501: ("NOT_IMPLEMENTED",)}
"""MLflow's error code by status; other statuses have BAD_REQUEST."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Refused(AssertionError):
    """The response to a bad request differs from the expected response."""


class Neglected(Refused):
    """The response to a valid request differs from the expected response."""


def read_answer(stream: IO[bytes], has_body: bool = True) -> Answer | None:
    """Return the next response, or None if the server has closed the connection."""
    line = stream.readline()
    while line.startswith(b"HTTP/1.1 100 "):
        stream.readline()
        line = stream.readline()
    if not line:
        return None
    headers: dict[str, str] = {}
    while (field := stream.readline()) not in (b"\r\n", b""):
        name, _, value = field.decode("latin-1").partition(": ")
        headers[name.lower()] = value.rstrip("\r\n")
    body = stream.read(int(headers.get("content-length", 0))) if has_body else b""
    return Answer(int(line.split()[1]), headers, body)


class Wire:
    """A server that receives requests as bytes."""

    def __init__(self, port: int, secrets: Iterable[bytes] = ()) -> None:
        self.port = port
        self._secrets = (*_SECRETS, *secrets)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def check_good(self, route: Route) -> None:
        """Check that the route answers its valid request correctly."""
        with self.connect() as connection, connection.makefile("rb") as stream:
            connection.sendall(route.request())
            check_right(route, read_answer(stream))

    def check(self, case: AnyCase, route: Route, comes_first: bool = False) -> None:
        """Check that the case is refused as expected, and that a valid request is
        answered after it.

        Args:
            comes_first: True to send a valid request together with the case, before it.
        """
        with self.connect() as connection, connection.makefile("rb") as stream:
            # The server may close the connection while the client sends.
            with contextlib.suppress(OSError):
                connection.sendall((route.request() if comes_first else b"") + case.sent(route))
            if comes_first:
                check_right(route, read_answer(stream))
            answer = self._read(stream)
            if answer is None:
                raise Refused("no answer")
            check_refusal(case, route, answer, self._secrets)
            closes = answer.headers.get("connection", "").lower() == "close"
            if closes and self._read(stream) is not None:
                raise Refused("the connection remains open after Connection: close")
            if not closes and case.closes:
                raise Refused("the connection remains open")
            if not closes:
                connection.sendall(route.request())
                check_right(route, read_answer(stream))
        if closes:
            self.check_good(route)

    def _read(self, stream: IO[bytes]) -> Answer | None:
        try:
            return read_answer(stream)
        except TimeoutError:
            raise Refused("no answer in time") from None
        except OSError:
            return None


class Wsgi:
    """The WSGI application of a server in this process.

    The request is split without validation, as by a WSGI server that accepts
    everything.
    """

    def __init__(self, server: Server) -> None:
        self._app = ServerApp(server)
        self._secrets = (*_SECRETS, str(server.repository.state_dir).encode())

    def check_good(self, route: Route) -> None:
        """Check that the route answers its valid request correctly."""
        check_right(route, self._ask(route.request()))

    def check(self, case: AnyCase, route: Route) -> None:
        """Check that the case is refused as expected, and that a valid request is
        answered after it.
        """
        check_refusal(case, route, self._ask(case.sent(route)), self._secrets)
        self.check_good(route)

    def _ask(self, sent: bytes) -> Answer:
        head, _, body = sent.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {}
        for field in fields:
            name, _, value = field.partition(":")
            headers[name] = value.strip(" ")
        if "Transfer-Encoding" in headers:  # in a single chunk
            size, _, rest = body.partition(b"\r\n")
            body = rest[: int(size, 16)]
        return Answer(*ask_wsgi(self._app, method, target, headers, body))


def check_right(route: Route, answer: Answer | None) -> None:
    if answer is None:
        raise Neglected("the good request is not answered")
    if answer.status != route.status or route.right not in answer.body:
        raise Neglected(f"the good request is answered by {answer.status} {answer.body[:300]!r}")


def check_refusal(
    case: AnyCase, route: Route, answer: Answer, secrets: Iterable[bytes] = _SECRETS
) -> None:
    """Check the status, the form and the message of an error."""
    shown = answer.body[:300]
    if answer.status != case.status:
        raise Refused(f"{answer.status} in place of {case.status}: {shown!r}")
    try:
        document: Any = json.loads(answer.body)
    except ValueError:
        raise Refused(f"not JSON: {shown!r}") from None
    forms = [{"error"} if route.has_short_errors else {"error_code", "message"}]
    if case.form == "any" or case.closes:  # refused before its path is known
        forms = [{"error"}, {"error_code", "message"}]
    if document.keys() not in forms:
        raise Refused(f"an error of another form: {shown!r}")
    code = document.get("error_code")
    if code is not None and code not in _CODES.get(answer.status, ("BAD_REQUEST",)):
        raise Refused(f"the code {code!r} does not go with {answer.status}")
    message = str(document.get("message", document.get("error")))
    if not 8 < len(message) < 3000 or "\n" in message:
        raise Refused(f"a message of {len(message)} characters: {shown!r}")
    if missing := [word for word in case.words if word not in message]:
        raise Refused(f"the message lacks {missing}: {shown!r}")
    sent = case.sent(route)
    if leaks := [secret for secret in secrets if secret in answer.body and secret not in sent]:
        raise Refused(f"the message tells {leaks}: {shown!r}")
