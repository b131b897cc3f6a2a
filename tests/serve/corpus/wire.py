"""Requests as bytes, for a socket or for the WSGI application in this process, and
their responses.
"""

import contextlib
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

from tests.serve.corpus.case import Case, Route

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
_CODES = {404: ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST")}
"""MLflow's error code by status; other statuses have BAD_REQUEST."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


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

    def check(self, case: Case, route: Route) -> None:
        """Check that the case is refused as expected, and that a valid request is
        answered after it.
        """
        with self.connect() as connection, connection.makefile("rb") as stream:
            # The server may close the connection while the client sends.
            with contextlib.suppress(OSError):
                connection.sendall(case.sent(route))
            answer = read_answer(stream)
            assert answer, "no answer"
            check_refusal(case, route, answer, self._secrets)
            closes = answer.headers.get("connection", "").lower() == "close"
            if closes:
                with contextlib.suppress(ConnectionError):
                    assert read_answer(stream) is None, "the connection remains open"
            else:
                assert not case.closes, "the connection remains open"
                connection.sendall(route.request())
                check_right(route, read_answer(stream))
        if closes:
            self.check_good(route)


def check_right(route: Route, answer: Answer | None) -> None:
    assert answer, "the good request is not answered"
    assert answer.status == route.status, answer
    assert route.right in answer.body, answer


def check_refusal(case: Case, route: Route, answer: Answer, secrets: Iterable[bytes]) -> None:
    """Check the status, the form and the message of an error."""
    assert answer.status == case.status, answer
    document: Any = json.loads(answer.body)
    forms = [{"error"} if route.has_short_errors else {"error_code", "message"}]
    if case.form == "any" or case.closes:  # refused before its path is known
        forms = [{"error"}, {"error_code", "message"}]
    assert document.keys() in forms, answer
    expected = (None, *_CODES.get(answer.status, ("BAD_REQUEST",)))
    assert document.get("error_code") in expected, answer
    message = str(document.get("message", document.get("error")))
    assert 8 < len(message) < 3000, answer
    assert "\n" not in message, answer
    assert [word for word in case.words if word not in message] == [], answer
    sent = case.sent(route)
    leaks = [secret for secret in secrets if secret in answer.body and secret not in sent]
    assert leaks == [], answer
