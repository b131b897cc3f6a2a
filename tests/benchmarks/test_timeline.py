"""The open loop that keeps every response, with a server whose errors are known."""

import asyncio
import threading
import time

import pytest

from benchmarks.serving.load import post
from benchmarks.serving.timeline import FAILED, MIXED, OpenLoop
from tests.support.waiting import wait_until

ANSWERS = {
    "first": b"HTTP/1.1 200 OK\r\nX-Model-Version: 1\r\nContent-Length: 3\r\n\r\none",
    "second": b"HTTP/1.1 200 OK\r\nx-model-version: 2\r\nContent-Length: 3\r\n\r\ntwo",
    "mixed": b"HTTP/1.1 200 OK\r\nX-Model-Version: 2\r\nContent-Length: 3\r\n\r\none",
    "refused": b"HTTP/1.1 503 x\r\nX-Model-Version: 2\r\nContent-Length: 3\r\n\r\ntwo",
    "closed": b"",
}


class Server:
    """A server whose responses depend on its mood."""

    def __init__(self):
        self.mood = "first"
        self.port = 0
        self.answered = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def __enter__(self):
        self._thread.start()
        wait_until(lambda: self.port, what="the server listens")
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _serve(self):
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        await self._ended.wait()
        server.close()

    async def _answer(self, reader, writer):
        try:
            while await reader.readuntil(b"body") and (answer := ANSWERS[self.mood]):
                writer.write(answer)
                self.answered += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
def server():
    with Server() as server:
        yield server


def test_answers_are_recorded_with_version_and_outcome(server, tmp_path):
    values = {"1": b"one", "2": b"two"}
    with OpenLoop(server.port, post("/", b"body"), values, 200.0, tmp_path / "kept.npy") as loop:
        for mood in ANSWERS:
            server.mood = mood
            seen = server.answered
            wait_until(
                lambda: server.answered > seen + 20 or server.mood == "closed",  # noqa: B023
                what="twenty answers",
            )
        time.sleep(0.2)  # some connections are closed
        server.mood = "first"
        wait_until(lambda: server.answered > seen + 20, what="it has reconnected")
        answers = loop.stop()
    versions = set(answers.version.tolist())
    assert versions == {1, 2, MIXED, FAILED}
    assert answers.mixed >= 20
    assert answers.failed >= 20
    assert (answers.latency >= 0).all()
    ones = answers.only(answers.version == 1)
    assert ones.failed == 0
    assert ones.mixed == 0
