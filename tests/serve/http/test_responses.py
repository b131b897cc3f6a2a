"""Responses as bytes."""

import re

import pytest

from mlflow_deploy_plugin.serve.http.responses import (
    RawResponse,
    serialize_response,
    serialize_streamed_head,
)


def test_answer_has_length_and_connection():
    head, _, body = serialize_response(
        RawResponse(200, b"abc", "text/plain", {"X-A": "b"}), keep_alive=True
    ).partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    assert line == "HTTP/1.1 200 OK"
    assert body == b"abc"
    assert re.fullmatch(r"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", fields[0])
    assert fields[1:] == [
        "Connection: keep-alive",
        "Content-Type: text/plain",
        "Content-Length: 3",
        "X-A: b",
    ]


def test_answer_to_head_has_length_without_body():
    got = serialize_response(RawResponse(404, b"abc"), keep_alive=False, with_body=False)
    assert got.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"Content-Length: 3\r\n" in got
    assert b"Connection: close\r\n" in got
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("m 1", b"m 1"),
        ("modèle", b"mod%C3%A8le"),
        ("模型", b"%E6%A8%A1%E5%9E%8B"),
        ("100%", b"100%25"),
        ("m\r\nX-Evil: yes", b"m%0D%0AX-Evil: yes"),
        ("m\n\r\0\x7f", b"m%0A%0D%00%7F"),
        ("half a surrogate \ud800", b"half a surrogate ?"),
    ],
)
def test_header_value_is_escaped(value, sent):
    response = RawResponse(200, b"", headers={"X-Model-Name": value, "X-Model-Version": "1"})
    for head in (
        serialize_response(response, keep_alive=True),
        serialize_streamed_head(response, keep_alive=True, is_chunked=True),
    ):
        assert b"\r\nX-Model-Name: " + sent + b"\r\nX-Model-Version: 1\r\n\r\n" in head


@pytest.mark.parametrize(
    ("value", "sent"), [("a%20b", b"a%20b"), ("100%", b"100%"), ("a\r\nb%", b"a%0D%0Ab%25")]
)
def test_request_id_is_escaped_only_if_needed(value, sent):
    response = RawResponse(200, b"", headers={"X-Request-Id": value, "X-Model-Name": "50% é"})
    head = serialize_response(response, keep_alive=True)
    assert b"\r\nX-Request-Id: " + sent + b"\r\nX-Model-Name: 50%25 %C3%A9\r\n\r\n" in head
