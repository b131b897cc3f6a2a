"""Answers as bytes."""

import pytest

from mlflow_deploy_plugin.server.http.messages import RawResponse
from mlflow_deploy_plugin.server.http.reply import reply


def test_an_answer_has_its_length_and_says_whether_the_connection_goes_on() -> None:
    head, _, body = reply(RawResponse(200, b"abc", "text/plain", {"X-A": "b"}), keeps_alive=True).partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    assert (line, body) == ("HTTP/1.1 200 OK", b"abc")
    assert fields[0].startswith("Date: ")
    assert fields[1:] == ["Connection: keep-alive", "Content-Type: text/plain", "Content-Length: 3", "X-A: b"]


def test_the_answer_to_a_head_has_the_length_and_not_the_body() -> None:
    got = reply(RawResponse(404, b"abc"), keeps_alive=False, with_body=False)
    assert got.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"Content-Length: 3\r\n" in got
    assert b"Connection: close\r\n" in got
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("value", ["modèle", "模型"])
def test_a_name_beyond_latin_1_does_not_break_the_answer(value: str) -> None:
    assert reply(RawResponse(200, b"", headers={"X-Model-Name": value}), keeps_alive=True).count(b"\r\n") == 7
