"""HTTP/1.1 of the fast worker, over real sockets."""

import asyncio
import json
import os
import re
import signal
import socket
import threading

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SERVER, read_workers
from tests.serve.http.listener import play, until, worker_app
from tests.support.raising import raise_it
from tests.support.servers import gunicorn, one_endpoint
from tests.support.waiting import wait_until

BODY = b'{"inputs": [[1, 2, 3]]}'
ANSWER = b'{"predictions":[[1006.0]]}'
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
UPLOAD = b"POST /endpoints/e/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n" + CHUNKED


def post(body=BODY, head=POST):
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def app(serve_here, bias_folders):
    return worker_app(serve_here(one_endpoint(bias_folders["1"])))


def answer_of(app, sent):
    """Return all bytes that a client receives that closes its sending side."""
    answers = []

    async def talk(opened):
        client = await opened.connect(b"")

        async def send():
            await opened.send(client, sent)
            client.shutdown(socket.SHUT_WR)

        sending = asyncio.create_task(send())
        answers.append(await opened.read(client))
        await sending

    play(app, talk)
    return answers[0]


def test_pipelined_requests_are_answered_in_order(app):
    bodies = [json.dumps({"inputs": [[n, 0, 0]] * (1 + 500 * (n % 2))}).encode() for n in range(40)]
    answer = answer_of(app, b"".join(post(body) + PING for body in bodies))
    firsts = re.findall(rb"predictions.:\[\[([\d.]+)\]", answer)
    assert [float(first) for first in firsts] == [1000.0 + n for n in range(40)]
    assert answer.count(b"HTTP/1.1 200 OK") == 80


def test_same_head_is_read_anew_for_each_request(app):
    longer = post(b'{"inputs": [[1, 2, 33]]}')
    other = post(head=POST + b"X-Request-Id: other\r\n")

    async def talk(opened):
        client = await opened.connect(b"")
        for sent, answer, is_other in (
            (post(), ANSWER, False),
            (post(), ANSWER, False),
            (longer, b'{"predictions":[[1036.0]]}', False),
            (other, ANSWER, True),
            (post(), ANSWER, False),
            (post() + other, ANSWER, True),
        ):
            await opened.send(client, sent)
            content = b""
            while content.count(b"]]}") < sent.count(b"POST"):
                content += await opened.read(client, b"]]}")
            assert content.endswith(answer)
            assert (b"X-Request-Id: other" in content) == is_other
        await opened.send(client, post()[:-1])  # the same head, and an incomplete body
        await asyncio.sleep(0.01)
        await opened.send(client, post()[-1:] + PING)
        content = await opened.read(client, b"\r\n\r\n\n")
        assert ANSWER in content

    play(app, talk)


@pytest.mark.parametrize(
    ("body", "is_paused", "end", "answer"),
    [
        (BODY, False, b"]]}", ANSWER),
        # The body must not be parsed as a request when writing resumes.
        (PING, True, b"}", b"HTTP/1.1 400"),
    ],
)
def test_waiting_client_receives_100_continue(app, body, is_paused, end, answer):
    async def talk(opened):
        head = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        client = await opened.connect(head)
        assert await opened.read(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        if is_paused:
            (connection,) = opened.connections
            connection.pause_writing()
            connection.resume_writing()
        await opened.send(client, body)
        assert answer in await opened.read(client, end)

    play(app, talk)


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /ping HT",
        b"GET /ping HTTP/1.1\r\nHost:",
        POST + b"Content-Length: 99\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n{",
    ],
)
def test_slow_request_times_out(app, begun):
    async def talk(opened):
        client = await opened.connect(begun)
        for _ in range(2):
            await until(lambda: opened.connections)
            await opened.send(client, b"a")
            await asyncio.sleep(0.01)
            opened.tick(6)  # of 10 seconds
        assert (await opened.read(client)).startswith(b"HTTP/1.1 408 ")

    play(app, talk)


def test_idle_client_is_disconnected(app):
    async def talk(opened):
        client = await opened.connect(b"")
        await until(lambda: opened.connections)
        opened.tick(11)
        assert await opened.read(client) == b""

    play(app, talk)


def test_half_closed_client_is_answered(app):
    assert answer_of(app, post() + PING + post()).count(b"HTTP/1.1 200 OK") == 3


def test_upload_behind_request_is_read_completely(app):
    (app.server.repository.state_dir / SERVER).touch()  # There is a process of jobs.
    # Reading is paused in the meantime.
    large = json.dumps({"inputs": [[1, 2, 3]] * 15_000}).encode()
    chunks = b"400\r\n%b\r\n" % (b"1" * 1024) * 3000
    answer = answer_of(app, post(large) + UPLOAD + chunks + b"0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"HTTP/1.1 202 Accepted") == 1
    (path,) = app.server.repository.state_dir.glob("jobs/*/input.csv")
    assert path.stat().st_size == 3000 * 1024


def test_half_closed_client_with_small_chunks_is_answered(app):
    """The end arrives while the chunks are read, a thousand steps at a time."""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 3000)
    assert answer_of(app, POST + CHUNKED + chunks + b"0\r\n\r\n").endswith(ANSWER)


def test_memory_error_is_answered_with_503(app, monkeypatch):
    monkeypatch.setattr(app, "handle", lambda *asked: raise_it(MemoryError()))
    assert answer_of(app, post()).startswith(b"HTTP/1.1 503")


def test_request_is_answered_when_no_thread_can_start(app, monkeypatch):
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: raise_it(RuntimeError("can't start new thread"))
    )
    assert answer_of(app, post()).startswith(b"HTTP/1.1 200")
    answer = answer_of(app, UPLOAD)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: 1\r\n" in answer


def test_truncated_body_is_refused(app):
    answer = answer_of(app, POST + b"Content-Length: 9\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"only 1 of the 9 bytes" in answer


def test_client_not_reading_is_disconnected(app):
    request = post(json.dumps({"inputs": [[1, 2, 3]] * 5000}).encode())
    sent = []

    async def talk(opened):
        client = await opened.connect(b"")

        async def flood():
            while True:
                await opened.send(client, request)
                sent.append(len(request))

        flooding = asyncio.create_task(flood())
        await until(lambda: sent and opened.tick(0.2) and not opened.connections)
        with pytest.raises(ConnectionError):
            await flooding

    play(app, talk)
    assert sum(sent) < 10_000_000


@pytest.mark.long
def test_hanging_worker_is_replaced(tmp_path, bias_folders):
    with gunicorn(
        tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(request_timeout_seconds=1)
    ) as running:
        (worker,) = read_workers(tmp_path)
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(
            lambda: [s for s in read_workers(tmp_path) if s.pid != worker.pid],
            what="another worker",
        )
        response = running.post(data=BODY, headers={"Content-Type": "application/json"})
        assert response.content == ANSWER
