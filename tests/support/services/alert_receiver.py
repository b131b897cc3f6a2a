"""A web server that receives alerts."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.services.listener import answering


@dataclass
class Receiver:
    """A receiver of Apprise's requests, by their path. While it is broken, it responds
    with status 500.

    Attributes:
        answer_bytes: the size of the body of its responses.
    """

    port: int = 0
    is_broken: bool = False
    answer_bytes: int = 0
    got: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def url(self, path):
        """The URL of the channel, with a secret."""
        return f"json://bot:s3cret-token@127.0.0.1:{self.port}/{path}"

    def titles(self, path):
        return [message["title"] for message in self.got.get(f"/{path}", [])]

    def phases(self, path):
        """Return the word of each title for its alert, such as `Alarm` or `Over`."""
        return [title.split(": ")[2] for title in self.titles(path)]


@contextmanager
def receiver():
    state = Receiver()

    def take(request, body):
        if not state.is_broken:
            state.got.setdefault(request.path.rstrip("/"), []).append(json.loads(body))
        return 500 if state.is_broken else 200, "text/plain", "\0" * state.answer_bytes

    with answering(take) as url:
        state.port = urlsplit(url).port
        yield state
